"""A LLaVA put together from a language model, a CLIP and a projector computes what its pieces compute."""

import warnings
from dataclasses import replace

import pytest
import torch
from torch.nn import functional
from transformers import (
    AutoProcessor,
    CLIPModel,
    CLIPTextConfig,
    CLIPVisionConfig,
    CLIPVisionModel,
    CohereConfig,
    CohereForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
    LlamaModel,
    LlavaForConditionalGeneration,
)
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

from mixlora.checkpoints.assembly import assemble, chat_template
from mixlora.checkpoints.conversion import import_checkpoint
from mixlora.common.errors import MixLoraError
from mixlora.common.labels import IGNORED
from mixlora.data.collation import Collator
from mixlora.data.examples import Example, Turn, pictures_first
from mixlora.data.templates import llava_v1
from tests.support.small_processors import byte_level, collating, picture

D, SEEN, SIDE, PATCH = 16, 12, 20, 5
TOWER = {"image_size": SIDE, "patch_size": PATCH, "num_hidden_layers": 3, "num_attention_heads": 2}
TOWER |= {"hidden_size": SEEN, "intermediate_size": 24}
EYE = {"size": {"shortest_edge": SIDE}, "crop_size": {"height": SIDE, "width": SIDE}}


def write_language(folder, rows=0, dtype=torch.float32, kind=LlamaForCausalLM, tied=False, **given):
    tokenizer = byte_level(bos=True, **given)
    torch.manual_seed(0)
    shape = {"hidden_size": D, "intermediate_size": 24, "num_hidden_layers": 2, "num_attention_heads": 2}
    config = LlamaConfig(vocab_size=rows or len(tokenizer), initializer_range=0.3, tie_word_embeddings=tied, **shape)
    kind(config).to(dtype).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def write_vision(folder, whole=True, side=SIDE):
    torch.manual_seed(1)
    seen = CLIPVisionConfig(**TOWER)
    if whole:
        read = CLIPTextConfig(hidden_size=8, intermediate_size=8, num_hidden_layers=1, num_attention_heads=1)
        model = CLIPModel._from_config(CLIPModel.config_class(text_config=read.to_dict(), vision_config=seen.to_dict()))
    else:
        model = CLIPVisionModel(seen)
    model.save_pretrained(folder)
    CLIPImageProcessorPil(
        **(EYE | {"size": {"shortest_edge": side}, "crop_size": {"height": side, "width": side}})
    ).save_pretrained(folder)
    return folder


def write_projector(file, d_in=SEEN, layers=1):
    generator = torch.Generator().manual_seed(2)
    ends = [("", d_in)] if layers == 1 else [("0.", d_in), ("2.", D)]
    tensors = {}
    for end, width in ends:
        tensors[f"model.mm_projector.{end}weight"] = torch.randn(D, width, generator=generator)
        tensors[f"model.mm_projector.{end}bias"] = torch.randn(D, generator=generator)
    torch.save(tensors, file)
    return file


@pytest.fixture(scope="module")
def pieces(tmp_path_factory):
    folder = tmp_path_factory.mktemp("pieces")
    write_projector(folder / "mm_projector.bin")
    return write_language(folder / "language"), write_vision(folder / "vision"), folder / "mm_projector.bin"


@pytest.fixture(scope="module")
def made(pieces, tmp_path_factory):
    language, vision, projector = pieces
    return assemble(language, vision, tmp_path_factory.mktemp("made") / "base", projector)


def example(image=None):
    turns = (Turn("user", "What is shown?"), Turn("assistant", "Paris."))
    images = () if image is None else (image,)
    return Example("1", "t", pictures_first(turns, len(images)), images, "made.jsonl:1")


def load(folder):
    return LlavaForConditionalGeneration.from_pretrained(folder, dtype="auto").eval(), AutoProcessor.from_pretrained(
        folder
    )


def projected(features, file):
    tensors = list(torch.load(file).values())
    result = functional.linear(features, *tensors[:2])
    return functional.linear(functional.gelu(result), *tensors[2:]) if len(tensors) > 2 else result


def composed(language, vision, projector, batch, image_token, layer=-2):
    """The logits by hand: the tower's hidden state without its class token, projected, in place of the placeholders."""
    lm, clip = LlamaForCausalLM.from_pretrained(language), CLIPVisionModel.from_pretrained(vision)
    seen = clip(batch["pixel_values"], output_hidden_states=True).hidden_states[layer][:, 1:]
    placed = batch["input_ids"] == image_token
    embedded = lm.model.embed_tokens(batch["input_ids"].masked_fill(placed, 0))
    embedded[placed] = projected(seen, projector).flatten(0, 1)
    return lm(inputs_embeds=embedded, attention_mask=batch["attention_mask"]).logits


def test_its_logits_are_those_of_its_pieces(pieces, made):
    model, processor = load(made)
    batch = collating(processor)([example(picture()), example(picture(30, 90))])
    assert (batch["input_ids"] == processor.image_token_id).sum(1).tolist() == [(SIDE // PATCH) ** 2] * 2
    with torch.no_grad():
        found = model(**batch)
        expected = composed(*pieces, batch, processor.image_token_id)
    torch.testing.assert_close(found.logits[..., : expected.shape[-1]], expected, rtol=0, atol=2e-5)
    supervised = batch["labels"][:, 1:] != IGNORED
    manual = functional.cross_entropy(found.logits[:, :-1][supervised], batch["labels"][:, 1:][supervised])
    torch.testing.assert_close(found.loss, manual)


@pytest.mark.parametrize(("layer", "layers", "whole"), [(-1, 1, True), (1, 2, True), (-3, 1, False)])
def test_other_layers_projectors_and_a_tower_alone(pieces, tmp_path, layer, layers, whole):
    vision = write_vision(tmp_path / "vision", whole)
    projector = write_projector(tmp_path / "mm_projector.bin", layers=layers)
    model, processor = load(assemble(pieces[0], vision, tmp_path / "base", projector, feature_layer=layer))
    batch = collating(processor)([example(picture())])
    with torch.no_grad():
        expected = composed(pieces[0], vision, projector, batch, processor.image_token_id, layer)
        torch.testing.assert_close(model(**batch).logits[..., : expected.shape[-1]], expected, rtol=0, atol=2e-5)


def test_a_text_has_the_language_models_own_logits_and_the_image_token_a_mean_one(pieces, tmp_path):
    plain = byte_level(bos=True)
    model, processor = load(assemble(*pieces[:2], tmp_path / "base", pieces[2], image_token="<picture>"))
    assert processor.image_token == "<picture>" and processor.image_token_id == len(plain)
    assert processor.tokenizer.encode("<picture>", add_special_tokens=False) == [len(plain)]
    batch = collating(processor)([example()])
    with torch.no_grad():
        own = LlamaForCausalLM.from_pretrained(pieces[0])(**{k: v for k, v in batch.items() if k != "labels"}).logits
        logits = model(**batch).logits
    assert torch.equal(logits[..., :-1], own)
    torch.testing.assert_close(logits[..., -1], own.mean(-1))
    assert (logits.softmax(-1)[..., -1] <= 1 / len(plain)).all()


def test_tied_embeddings_stay_tied_and_a_vocabulary_with_room_is_not_resized(pieces, tmp_path):
    language = write_language(tmp_path / "language", rows=700, tied=True)
    model, processor = load(assemble(language, pieces[1], tmp_path / "base", pieces[2], image_token="<picture>"))
    assert model.lm_head.weight is model.model.language_model.embed_tokens.weight
    assert model.lm_head.weight.shape == (700, D) and len(processor.tokenizer) < 700
    own = LlamaForCausalLM.from_pretrained(language)
    assert torch.equal(model.lm_head.weight, own.lm_head.weight)


def test_prompts_and_labels_are_those_of_llava_v1(made):
    _, processor = load(made)
    own, reference = Collator(processor), Collator(processor, template=llava_v1(processor))
    assert not own.template.is_llava_v1 and reference.template.is_llava_v1
    more = (Turn("user", "And?"), Turn("assistant", "That."))
    for shown in (None, picture()):
        turns = (*example(shown).turns, *more)
        for conversation in (turns, (Turn("system", "Be brief."), *turns)):
            asked = replace(example(shown), turns=conversation)
            ours, theirs = own.encode(asked), reference.encode(asked)
            assert (ours.input_ids, ours.labels) == (theirs.input_ids, theirs.labels)
            assert own.encode_prompt(asked).input_ids == reference.encode_prompt(asked).input_ids
    assert "USER: <image>\nWhat is shown? ASSISTANT: Paris.</s>" in own.encode(example(picture())).text
    parts = [{"role": "user", "content": [{"type": "text", "text": "And?"}, {"type": "image"}]}]
    assert processor.apply_chat_template(parts, add_generation_prompt=True).endswith("USER: <image>\nAnd? ASSISTANT:")
    assert "'\"\\n" in chat_template("<'\">").replace("<", "").replace(">", "").replace('\\"', '"')


def test_a_batch_starts_with_bos_and_generation_stops_at_eos(made):
    model, processor = load(made)
    encoded = collating(processor).encode(example(picture()))
    assert encoded.input_ids.count(processor.tokenizer.bos_token_id) == 1
    assert encoded.input_ids[0] == processor.tokenizer.bos_token_id
    kept, words = model.generation_config, processor.tokenizer
    assert (kept.eos_token_id, kept.pad_token_id) == (words.eos_token_id, words.pad_token_id)


@pytest.mark.parametrize(("given", "pad"), [({"unk_token": "<s>"}, "<s>"), ({}, "</s>")])
def test_padding_is_the_unk_token_or_else_eos(pieces, tmp_path, given, pad):
    language = write_language(tmp_path / "language", pad_token=None, **given)
    _, processor = load(assemble(language, *[pieces[1], tmp_path / "base", pieces[2]]))
    assert processor.tokenizer.pad_token == pad


def test_dtypes(pieces, tmp_path):
    language = write_language(tmp_path / "language", dtype=torch.float16)
    for asked, expected in (("auto", torch.float16), ("bfloat16", torch.bfloat16)):
        model, _ = load(assemble(language, pieces[1], tmp_path / asked, pieces[2], dtype=asked))
        assert {parameter.dtype for parameter in model.parameters()} == {expected}


def test_sampling_settings_that_contradict_each_other_do_not_stop_it(pieces, tmp_path):
    language = write_language(tmp_path / "language")
    (language / "generation_config.json").write_text('{"temperature": 0.9, "top_p": 0.6, "eos_token_id": 1}')
    model, _ = load(assemble(language, pieces[1], tmp_path / "base", pieces[2]))
    assert model.generation_config.temperature in (None, 1.0)


def test_without_a_projector_it_is_new_seeded_and_said(pieces, tmp_path):
    weights = []
    for name, seed in (("a", 0), ("b", 0), ("c", 1)):
        with pytest.warns(UserWarning, match="its weights are new, and the model cannot see yet"):
            model, _ = load(assemble(*pieces[:2], tmp_path / name, seed=seed))
        assert model.config.projector_hidden_act == "gelu"
        projector = model.model.multi_modal_projector
        assert not projector.linear_1.bias.any() and not projector.linear_2.bias.any()
        assert 0.2 < projector.linear_2.weight.std() < 0.4  # the language model's initializer_range is 0.3
        weights.append(projector.linear_1.weight)
    assert torch.equal(weights[0], weights[1]) and not torch.equal(weights[0], weights[2])


def test_a_converted_projector_is_taken_as_it_is(pieces, made, tmp_path):
    import_checkpoint(pieces[2], tmp_path / "converted")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        again, _ = load(assemble(*pieces[:2], tmp_path / "base", tmp_path / "converted"))
    for name, tensor in load(made)[0].state_dict().items():
        assert torch.equal(again.state_dict()[name], tensor), name


def refused(out, words, *given, **options):
    with pytest.raises(MixLoraError, match=words) as told:
        assemble(given[0], given[1], out, *given[2:], **options)
    assert "\n" not in str(told.value)
    assert not out.exists() or any(out.iterdir())
    assert not list(out.parent.glob(".*.partial"))


def test_what_is_no_piece_is_refused(pieces, tmp_path):
    language, vision, projector = pieces
    out = tmp_path / "base"
    refused(out, "no tokenizer can be loaded from .*none", tmp_path / "none", vision, projector)
    refused(out, "no vision model can be read from .*none", language, tmp_path / "none", projector)
    refused(out, "is a llama, not a CLIP", language, language, projector)
    headless = write_language(tmp_path / "headless", kind=LlamaModel)
    refused(out, r"headless lacks lm_head.weight \(1 weights are missing\)", headless, vision, projector)
    byte_level(bos=True).save_pretrained(tmp_path / "clip")
    write_vision(tmp_path / "clip")
    refused(
        out,
        "is a clip and already has a vision tower; give a language model without one",
        tmp_path / "clip",
        vision,
        projector,
    )
    refused(out, "vision lacks mm_projector|has an unknown format", language, vision, vision)
    wide = write_projector(tmp_path / "mm_projector.bin", d_in=SEEN + 1)
    shapes = rf"shape \({D}, {SEEN}\) in the base and \({D}, {SEEN + 1}\)"
    refused(out, f"mm_projector.bin does not fit .*: .*{shapes}", language, vision, wide)
    small = write_vision(tmp_path / "small", side=SIDE - 5)
    sizes = rf"makes pictures of \(3, 15, 15\), but its tower expects \(3, {SIDE}, {SIDE}\)"
    refused(out, sizes, language, small, projector)


def test_a_language_model_that_llavas_head_cannot_compute_is_refused(pieces, tmp_path):
    config = CohereConfig(
        vocab_size=700, hidden_size=D, intermediate_size=24, num_hidden_layers=1, num_attention_heads=2, logit_scale=0.1
    )
    CohereForCausalLM(config).save_pretrained(tmp_path / "cohere")
    byte_level(bos=True).save_pretrained(tmp_path / "cohere")
    refused(tmp_path / "base", "is a cohere, whose logits a LLaVA does not compute", tmp_path / "cohere", *pieces[1:])


def test_options_out_of_range_are_refused(pieces, tmp_path):
    out = tmp_path / "base"
    refused(out, "dtype is 'int8'; it must be one of auto, float32, bfloat16, float16", *pieces, dtype="int8")
    for layer in (0, -4, 4):
        words = f"feature_layer is {layer}, but .* has the layers 1 to 3, or -3 to -1 from its end"
        refused(out, words, *pieces, feature_layer=layer)
    refused(out, "image_token is '</s>'; it must be a token of its own", *pieces, image_token="</s>")


def test_what_a_killed_one_left_is_not_in_the_way(pieces, tmp_path):
    left = tmp_path / ".base.partial" / "half.safetensors"
    left.parent.mkdir()
    left.write_text("half")
    load(assemble(*pieces[:2], tmp_path / "base", pieces[2]))
    assert left.read_text() == "half"


def test_of_two_at_once_the_first_to_end_is_whole_and_the_other_is_told(pieces, tmp_path, monkeypatch):
    save = LlavaForConditionalGeneration.save_pretrained

    def overtaken(model, folder, **options):
        monkeypatch.setattr(LlavaForConditionalGeneration, "save_pretrained", save)
        assemble(*pieces[:2], tmp_path / "base", pieces[2])
        save(model, folder, **options)

    monkeypatch.setattr(LlavaForConditionalGeneration, "save_pretrained", overtaken)
    with pytest.raises(MixLoraError, match="base cannot be written: Directory not empty"):
        assemble(*pieces[:2], tmp_path / "base", pieces[2])
    load(tmp_path / "base")
    assert [path.name for path in tmp_path.iterdir()] == ["base"]


def test_a_directory_that_holds_something_is_left_alone(pieces, tmp_path):
    (tmp_path / "base").mkdir()
    (tmp_path / "base" / "mine.txt").write_text("mine")
    refused(tmp_path / "base", "is not empty; name a new directory", *pieces)
    assert [path.name for path in (tmp_path / "base").iterdir()] == ["mine.txt"]
