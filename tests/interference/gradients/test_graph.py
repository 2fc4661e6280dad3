"""No autograd graph is kept where none is needed, and no weight gets a gradient."""

import pytest

from interference.gradients.probe import Probe
from interference.gradients.targets import find_targets
from tests.support.models import batch, llama, llava, lora

BATCH = {"lengths": [12, 7, 9], "answers": [3, 1, 5]}


def entering(model, classes):
    """Whether a gradient is asked of what each module of these classes is given, in the order of their calls."""
    required, handles = [], []
    for module in model.modules():
        if type(module).__name__ in classes:
            handles.append(module.register_forward_pre_hook(lambda _, given: required.append(given[0].requires_grad)))
    return required, handles


@pytest.mark.parametrize("first", [0, 1, 2])
def test_layers_below_the_first_probed_one_run_without_a_graph(first):
    model = lora(llama())
    required, handles = entering(model, {"LlamaDecoderLayer"})
    with Probe(model, find_targets(model, "default", layers=[first])) as probe:
        probe.gradients(batch(**BATCH))
    for handle in handles:
        handle.remove()
    assert required == [layer > first for layer in range(3)]


def test_the_image_encoder_runs_without_a_graph():
    model = lora(llava(), r".*(q_proj|fc1|linear_1|down_proj)")
    required, handles = entering(model, {"CLIPEncoderLayer", "LlavaMultiModalProjector", "LlamaDecoderLayer"})
    with Probe(model, find_targets(model, "default")) as probe:
        probe.gradients(batch(**BATCH, image=True))
    for handle in handles:
        handle.remove()
    assert required == [False] * 4 + [True] * 2


def test_no_weight_gets_a_gradient():
    model = lora(llama())
    with Probe(model, find_targets(model, "default")) as probe:
        probe.gradients(batch(**BATCH))
    assert all(parameter.grad is None for parameter in model.parameters())
