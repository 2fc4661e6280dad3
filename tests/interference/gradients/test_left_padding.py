"""Left padding: a gradient is that of the example alone, or the model is refused."""

import pytest
import torch
from transformers import (
    BioGptConfig,
    BioGptForCausalLM,
    GPTBigCodeConfig,
    GPTBigCodeForCausalLM,
    GPTNeoConfig,
    GPTNeoForCausalLM,
    MambaConfig,
    MambaForCausalLM,
    RecurrentGemmaConfig,
    RecurrentGemmaForCausalLM,
    XGLMConfig,
    XGLMForCausalLM,
)

from interference.errors import MeasurementError
from interference.gradients.autograd import model_loss
from interference.gradients.padding import with_positions
from interference.gradients.probe import Probe
from interference.gradients.targets import find_targets
from interference.verification import reference
from tests.support.adapted import padded_left
from tests.support.models import VOCABULARY, batch, gpt2, llama, lora, opt

SMALL = {"vocab_size": VOCABULARY, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4}


def big_code():
    return GPTBigCodeForCausalLM(
        GPTBigCodeConfig(vocab_size=VOCABULARY, n_embd=32, n_layer=2, n_head=4, n_positions=64, initializer_range=0.2)
    )


def neo():
    return GPTNeoForCausalLM(
        GPTNeoConfig(
            vocab_size=VOCABULARY, hidden_size=32, num_layers=2, num_heads=4, attention_types=[[["global"], 2]],
            max_position_embeddings=64, initializer_range=0.2,
        )
    )  # fmt: skip


def biogpt():
    return BioGptForCausalLM(
        BioGptConfig(**SMALL, intermediate_size=48, max_position_embeddings=64, initializer_range=0.2)
    )


def xglm():
    return XGLMForCausalLM(
        XGLMConfig(
            vocab_size=VOCABULARY, d_model=32, ffn_dim=48, num_layers=2, attention_heads=4, init_std=0.2,
            max_position_embeddings=64,
        )
    )  # fmt: skip


def recurrent():
    return RecurrentGemmaForCausalLM(
        RecurrentGemmaConfig(
            **SMALL, intermediate_size=48, lru_width=32, attention_window_size=32,
            block_types=["recurrent", "attention"],
        )
    )  # fmt: skip


MODELS = {
    "gpt2": (gpt2, ["c_attn"]),
    "gpt_bigcode": (big_code, ["c_attn"]),
    "gpt_neo": (neo, ["q_proj"]),
    "biogpt": (biogpt, ["q_proj"]),
    "xglm": (xglm, ["q_proj"]),
    "opt": (opt, ["q_proj"]),
    "llama": (llama, ["q_proj"]),
}


def made(build, modules):
    torch.manual_seed(0)
    model = lora(build(), modules, fan_in_fan_out=build is gpt2)
    if build is not xglm:  # it masks with a float32 number
        model = model.double()
    return model, padded_left(batch([9, 7, 12], [3, 2, 4]))


@pytest.mark.parametrize("loss", [None, model_loss], ids=["plain", "own"])
@pytest.mark.parametrize("name", MODELS)
def test_a_gradient_is_that_of_the_example_alone(name, loss):
    model, inputs = made(*MODELS[name])
    targets = find_targets(model, "default")
    with Probe(model, targets, loss) as probe:
        found = probe.gradients(inputs)
    for block, expected in reference.of_targets(model, inputs, targets).items():
        scale = float(expected.abs().max())
        torch.testing.assert_close(
            found.gradients[block], expected.to(found.gradients[block]), rtol=0, atol=1e-5 * scale
        )


def test_positions_of_the_caller_count():
    model, inputs = made(gpt2, ["c_attn"])
    given = inputs | {"position_ids": torch.arange(12).repeat(3, 1)}
    assert with_positions(model, given) is given
    assert with_positions(model, inputs)["position_ids"][0].tolist() == [0, 0, 0, *range(9)]
    right = batch([9, 7], [3, 2])
    assert with_positions(model, right) is right


def test_a_model_whose_loss_depends_on_padding_is_refused():
    model, inputs = made(recurrent, ["q_proj", "linear_x"])
    inputs["input_ids"][inputs["attention_mask"] == 0] = 7  # its convolution sees them
    said = r"^RecurrentGemmaForCausalLM computes another loss for an example with padding on its left \(.*\); pad on"
    with Probe(model, find_targets(model, "default")) as probe:
        with pytest.raises(MeasurementError, match=said):
            probe.gradients(inputs)
        assert len(probe.gradients(batch([9, 7, 12], [3, 2, 4])).losses) == 3


def test_a_state_space_model_that_masks_padding_is_measured():
    config = MambaConfig(
        vocab_size=VOCABULARY, hidden_size=32, num_hidden_layers=2, state_size=4, initializer_range=0.2
    )
    model, inputs = made(lambda: MambaForCausalLM(config), ["x_proj"])
    targets = find_targets(model, "default")
    with Probe(model, targets) as probe:
        found = probe.gradients(inputs)
    for block, expected in reference.of_targets(model, inputs, targets).items():
        torch.testing.assert_close(found.gradients[block].double(), expected, rtol=1e-5, atol=1e-7)
