"""Tiny checkpoints in the layouts of the released MixLoRA and of LLaVA v1, with random weights."""

import json
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from transformers import CLIPVisionConfig, LlamaConfig, LlavaConfig, LlavaForConditionalGeneration

from mixlora.checkpoints.conversion import import_checkpoint
from mixlora.common.errors import CheckpointError

E, R, D, WIDE = 4, 2, 8, 12
LAYERS = 2
SHAPES = {  # projection: (d_out, d_in)
    **{f"self_attn.{name}_proj": (D, D) for name in "qkvo"},
    **{"mlp.gate_proj": (WIDE, D), "mlp.up_proj": (WIDE, D), "mlp.down_proj": (D, WIDE)},
}
STEM = "base_model.model.model."


def namespace(**changes) -> SimpleNamespace:
    """What `cmoa_args.bin` holds, with IFS and CFS."""
    usual = {"cond_type": "input_lora_a_param", "n_experts": E, "n_selected": R, "lora_alpha": 2 * E}
    usual |= {"lora_dropout": 0.05, "lora_bias": "none", "mix_mm_projector": False, "attribute_dim": 32}
    usual |= {"used_scored_weight": False, "independent_rank": True, "mix_loraA": True, "mix_start_layer": 0}
    return SimpleNamespace(**usual | {"ifs_weight": 1.0} | changes)


def draws(seed: int, dtype: torch.dtype):
    generator = torch.Generator().manual_seed(seed)
    return lambda *shape: (torch.rand(shape, generator=generator) * 2 - 1).to(dtype)


def mixlora_tensors(conditional: bool = True, dtype: torch.dtype = torch.float32) -> dict[str, torch.Tensor]:
    """A released state_dict: base, factors, routers within their initial range, projector."""
    draw, tensors = draws(0, dtype), {}
    for layer in range(LAYERS):
        for name, (d_out, d_in) in SHAPES.items():
            stem = f"{STEM}layers.{layer}.{name}."
            tensors[f"{stem}weight"] = draw(d_out, d_in)
            for factor in range(E):
                tensors[f"{stem}lora_A.default.{factor}"] = draw(1, d_in)
                tensors[f"{stem}lora_B.default.{factor}"] = draw(1, d_out)
            extra = "cmoa_loarB_extra_selector" if conditional else "cmoa_selector"
            tensors[f"{stem}cmoa_selector.loraA_selector.weight"] = draw(E, d_in) / d_in**0.5
            tensors[f"{stem}{extra}.loraB_selector.weight"] = draw(E, d_in) / d_in**0.5
            if conditional:
                tensors[f"{stem}{extra}.loraA_param2loraB_selector.weight"] = draw(E, R * d_in) / (R * d_in) ** 0.5
    tensors |= {f"{STEM}mm_projector.weight": draw(D, 6), f"{STEM}mm_projector.bias": draw(D)}
    tensors |= {f"{STEM}vision_tower.vision_tower.layers.0.self_attn.q_proj.weight": draw(6, 6)}
    return tensors | {f"{STEM}embed_tokens.weight": draw(16, D), "base_model.model.lm_head.weight": draw(16, D)}


def write_mixlora(folder: Path, tensors: dict[str, torch.Tensor], shards: int = 1, **settings) -> Path:
    """A released directory; `settings` change its namespace, None takes a name out."""
    folder.mkdir()
    known = vars(namespace(**settings))
    torch.save(SimpleNamespace(**{k: v for k, v in known.items() if v is not None}), folder / "cmoa_args.bin")
    (folder / "config.json").write_text(json.dumps({"hidden_size": D, "num_hidden_layers": LAYERS}))
    if shards == 1:
        torch.save(tensors, folder / "pytorch_model.bin")
        return folder
    names = list(tensors)
    places = {name: f"pytorch_model-{i % shards + 1:05}-of-{shards:05}.bin" for i, name in enumerate(names)}
    for file in set(places.values()):
        torch.save({name: tensors[name] for name in names if places[name] == file}, folder / file)
    (folder / "pytorch_model.bin.index.json").write_text(json.dumps({"weight_map": places}))
    return folder


def projector_tensors(layers: int = 1, stem: str = "model.", dtype: torch.dtype = torch.float32):
    """The projector of LLaVA v1 (one Linear 6 -> D) or 1.5 (two)."""
    draw = draws(1, dtype)
    if layers == 1:
        return {f"{stem}mm_projector.weight": draw(D, 6), f"{stem}mm_projector.bias": draw(D)}
    first = {f"{stem}mm_projector.0.weight": draw(D, 6), f"{stem}mm_projector.0.bias": draw(D)}
    return first | {f"{stem}mm_projector.2.weight": draw(D, D), f"{stem}mm_projector.2.bias": draw(D)}


def lora_tensors(layers=range(LAYERS)) -> dict[str, torch.Tensor]:
    draw, tensors = draws(2, torch.float32), {}
    for layer in layers:
        for name, (d_out, d_in) in SHAPES.items():
            tensors[f"{STEM}layers.{layer}.{name}.lora_A.weight"] = draw(R, d_in)
            tensors[f"{STEM}layers.{layer}.{name}.lora_B.weight"] = draw(d_out, R)
    return tensors


def write_lora(folder: Path, tensors: dict[str, torch.Tensor], projector: bool = True, **config) -> Path:
    """A LLaVA v1 LoRA directory."""
    folder.mkdir()
    names = sorted({name.partition(".")[2] for name in SHAPES})
    usual = {"peft_type": "LORA", "task_type": "CAUSAL_LM", "base_model_name_or_path": "vicuna", "r": R}
    usual |= {"lora_alpha": 16, "lora_dropout": 0.05, "bias": "none", "target_modules": names, "modules_to_save": None}
    (folder / "adapter_config.json").write_text(json.dumps(usual | config))
    torch.save(tensors, folder / "adapter_model.bin")
    if projector:
        torch.save(projector_tensors(2, STEM), folder / "non_lora_trainables.bin")
    return folder


def llava(hidden_act: str = "gelu") -> LlavaForConditionalGeneration:
    """A Hugging Face LLaVA of these sizes."""
    text = LlamaConfig(
        vocab_size=16,
        hidden_size=D,
        intermediate_size=12,
        num_hidden_layers=LAYERS,
        num_attention_heads=2,
        num_key_value_heads=2,
    )
    vision = CLIPVisionConfig(
        hidden_size=6, intermediate_size=6, num_hidden_layers=2, num_attention_heads=1, image_size=4, patch_size=2
    )
    torch.manual_seed(0)
    config = LlavaConfig(vision_config=vision, text_config=text, image_token_index=15, projector_hidden_act=hidden_act)
    return LlavaForConditionalGeneration(config).eval()


def refused(source: Path, out: Path, *words: str) -> None:
    """Assert that converting is refused in one sentence with these words, and leaves nothing behind."""
    with pytest.raises(CheckpointError) as caught:
        import_checkpoint(source, out)
    message = str(caught.value)
    assert "\n" not in message and all(word in message for word in words), message
    assert not out.exists() and not [p for p in out.parent.iterdir() if p.name.endswith(".tmp")]
