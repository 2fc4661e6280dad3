"""The arithmetic of one adapted Linear, against the released layer and against the equations written out with loops."""

import pytest
import torch
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file
from torch.testing import assert_close

from mixlora import MixLoraConfig
from tests.support.adapted import Single, batch, gradients, layers, llama, loss_of, perturb, single
from tests.support.paths import GOLDEN

LINEAR = GOLDEN / "mixlora_linear.safetensors"
D_IN, D_OUT, E, R, ALPHA = 5, 7, 6, 3, 4.0


def softmax(values):
    exponentials = [(value - max(values)).exp() for value in values]
    return [value / sum(exponentials) for value in exponentials]


def ranked(scores, r):
    return sorted(range(len(scores)), key=lambda e: -scores[e].item())[:r]


def written_out(x, weight, a, b, router_a, router_b, conditional=None, r=R, alpha=ALPHA):
    """One instance x [seq, d_in] by Eqs. 4 to 11, a selected pair counting 1 with its scores' derivative."""
    h = sum(x) / len(x)
    scores_a = softmax([router_a[e] @ h for e in range(len(a))])  # Eq. 4
    chosen_a = ranked(scores_a, r)  # Eq. 5
    scores_b = softmax([router_b[e] @ h for e in range(len(b))])  # Eq. 6
    if conditional is not None:
        total = [0.0] * len(b)
        for k, factor in enumerate(chosen_a):  # Eq. 7
            parts = softmax([sum(a[factor, d] * conditional[k, d, e] for d in range(len(h))) for e in range(len(b))])
            total = [before + part for before, part in zip(total, parts, strict=True)]
        scores_b = [own + given for own, given in zip(scores_b, softmax(total), strict=True)]  # Eq. 9
    chosen_b = ranked(scores_b, r)  # Eq. 10
    rows = []
    for token in x:  # Eq. 11
        y = weight @ token
        for i, j in zip(chosen_a, chosen_b, strict=True):
            counted = (1 + scores_a[i] - scores_a[i].detach()) * (1 + scores_b[j] - scores_b[j].detach())
            y = y + alpha / r * counted * (a[i] @ token) * b[j]
        rows.append(y)
    return torch.stack(rows), chosen_a, chosen_b, torch.stack(scores_a), torch.stack(scores_b)


def parts(model):
    """Weight, factors and routers of a single layer, by the names `written_out` gives them."""
    (layer,) = layers(model).values()
    router = layer.mixlora_router["default"]
    found = {
        "weight": layer.base_layer.weight,
        "a": layer.mixlora_A["default"],
        "b": layer.mixlora_B["default"],
        "router_a": router.independent_A.weight,
        "router_b": router.independent_B.weight,
    }
    return found if router.conditional is None else found | {"conditional": router.conditional.weight}


@pytest.mark.parametrize("case", range(4))
def test_the_official_preset_computes_what_the_released_layer_does(case):
    golden = {k.removeprefix(f"{case}."): v for k, v in load_file(LINEAR).items() if k.startswith(f"{case}.")}
    d_in, d_out, factors, r, alpha, _, _, conditional = golden["hyper"].tolist()
    config = MixLoraConfig.official(r=r, num_factors=factors, lora_alpha=alpha, conditional=bool(conditional))
    model = single(config, d_in, d_out, torch.float32)
    own = parts(model)
    released = {"weight": "weight", "a": "factors_A", "b": "factors_B", "router_a": "ifs_A.weight"}
    with torch.no_grad():
        for name, key in (released | {"router_b": "ifs_B.weight"}).items():
            own[name].copy_(golden[key])
        if conditional:
            own["conditional"].copy_(golden["cfs.weight"].view(factors, r, d_in).permute(1, 2, 0))
    x = golden["x"].requires_grad_()
    y = model(x)
    (y * golden["grad_output"]).sum().backward()
    (layer,) = layers(model).values()
    assert torch.equal(layer.selection.A, golden["selected_A"])
    assert torch.equal(layer.selection.B, golden["selected_B"])
    near = {"rtol": 1e-5, "atol": 1e-5}
    assert_close(y, golden["y"], **near)
    assert_close(x.grad, golden["grad_x"], **near)
    assert_close(own["a"].grad, golden["grad_factors_A"], **near)
    assert_close(own["b"].grad, golden["grad_factors_B"], **near)
    assert own["router_a"].grad is None


@pytest.mark.parametrize("conditional", [True, False])
@pytest.mark.parametrize("seed", range(3))
def test_the_paper_preset_is_the_equations_written_out_and_so_are_its_gradients(conditional, seed):
    config = MixLoraConfig.paper(r=R, num_factors=E, lora_alpha=ALPHA, conditional=conditional)
    model = single(config, D_IN, D_OUT)
    perturb(model, seed)
    own = parts(model)
    generator = torch.Generator().manual_seed(seed)
    x, out = (torch.randn(4, 3, d, dtype=torch.float64, generator=generator) for d in (D_IN, D_OUT))
    y = model(x.requires_grad_())
    learnt = [x, *(own[name] for name in own if name != "weight")]
    found = torch.autograd.grad((y * out).sum(), learnt)
    expected = [written_out(row, **own) for row in x]
    assert_close(y, torch.stack([e[0] for e in expected]), rtol=1e-12, atol=1e-12)
    (layer,) = layers(model).values()
    chosen = layer.selection
    assert chosen.A.tolist() == [e[1] for e in expected]
    assert chosen.B.tolist() == [e[2] for e in expected]
    assert_close(chosen.scores_A, torch.stack([e[3] for e in expected]).detach(), rtol=1e-12, atol=1e-12)
    assert_close(chosen.scores_B, torch.stack([e[4] for e in expected]).detach(), rtol=1e-12, atol=1e-12)
    total = sum((e[0] * g).sum() for e, g in zip(expected, out, strict=True))
    for mine, theirs in zip(found, torch.autograd.grad(total, learnt), strict=True):
        assert theirs.abs().max() > 1e-3
        assert_close(mine, theirs, rtol=1e-10, atol=1e-12)


def test_the_gradient_of_the_independent_router_is_the_one_derived_by_hand():
    """dL/dW_A[e] = p_e (g_e - sum_f p_f g_f) h, g_e of a selected e being alpha/r sum_t <a_e, x_t> <b, dL/dy_t>."""
    model = single(MixLoraConfig.paper(r=R, num_factors=E, lora_alpha=ALPHA, conditional=False), D_IN, D_OUT)
    own = parts(model)
    torch.manual_seed(3)
    x, out = (torch.randn(1, 4, d, dtype=torch.float64) for d in (D_IN, D_OUT))
    (model(x) * out).sum().backward()
    (layer,) = layers(model).values()
    p, g = layer.selection.scores_A[0], torch.zeros(E, dtype=torch.float64)
    for i, j in zip(layer.selection.A[0].tolist(), layer.selection.B[0].tolist(), strict=True):
        g[i] = ALPHA / R * sum((own["a"][i] @ x[0, t]) * (own["b"][j] @ out[0, t]) for t in range(4)).item()
    by_hand = torch.outer(p * (g - p @ g), x[0].mean(dim=0))
    assert_close(own["router_a"].grad, by_hand, rtol=1e-10, atol=1e-12)


def test_the_official_conditional_form_is_the_released_einsum():
    model = single(MixLoraConfig.official(r=R, num_factors=E), D_IN, D_OUT)
    own, (layer,) = parts(model), layers(model).values()
    x = torch.randn(4, 3, D_IN, dtype=torch.float64, generator=torch.Generator().manual_seed(5))
    model(x)
    a = own["a"][layer.selection.A]
    cfs = torch.einsum("brd,rfe->bre", a, own["conditional"]).softmax(-1).sum(1).softmax(-1)
    expected = (x.mean(dim=1) @ own["router_b"].T).softmax(-1) + cfs
    assert_close(layer.selection.scores_B, expected.detach(), rtol=1e-12, atol=1e-12)
    assert torch.equal(layer.selection.B, expected.topk(R).indices)
    exact = torch.einsum("brd,rde->bre", a, own["conditional"]).softmax(-1).sum(1).softmax(-1)
    assert not torch.allclose(exact, cfs, atol=1e-3)


def test_all_factors_with_equal_routers_are_a_lora_of_that_rank():
    options = {"target_modules": ["q_proj", "down_proj"], "lora_alpha": 12.0, "r": 5}
    config = MixLoraConfig.paper(num_factors=5, conditional=False, router_gradient="none", **options)
    mixed = get_peft_model(llama(), config)
    perturb(mixed)
    lora = get_peft_model(llama(), LoraConfig(**options))
    low = {name: module for name, module in lora.named_modules() if hasattr(module, "lora_A")}
    with torch.no_grad():
        for name, layer in layers(mixed).items():
            router = layer.mixlora_router["default"]
            router.independent_B.weight.copy_(router.independent_A.weight)
            low[name].lora_A["default"].weight.copy_(layer.mixlora_A["default"])
            low[name].lora_B["default"].weight.copy_(layer.mixlora_B["default"].T)
    inputs = batch([9, 6, 12], [3, 2, 4])
    mine, theirs = mixed(**inputs).logits, lora(**inputs).logits
    assert (theirs - llama()(**inputs).logits).abs().max() > 0.1
    assert_close(mine, theirs, rtol=1e-4, atol=1e-5)
    loss_of(lora, inputs).backward()
    expected = gradients(lora)
    loss_of(mixed, inputs).backward()
    found = gradients(mixed)
    for name in low:
        a, b = (found[f"{name}.mixlora_{side}.default"] for side in "AB")
        assert_close(a, expected[f"{name}.lora_A.default.weight"], rtol=1e-3, atol=1e-5)
        assert_close(b, expected[f"{name}.lora_B.default.weight"].T, rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("form", ["exact", "official"])
def test_factors_permuted_with_their_router_rows_change_nothing(form):
    model = single(MixLoraConfig.paper(r=R, num_factors=E, cfs_form=form), D_IN, D_OUT)
    own, (layer,) = parts(model), layers(model).values()
    torch.manual_seed(4)
    x = torch.randn(4, 3, D_IN, dtype=torch.float64)
    before, chosen = model(x), layer.selection
    of_a, of_b = torch.tensor([3, 0, 5, 1, 4, 2]), torch.tensor([1, 5, 2, 0, 3, 4])
    with torch.no_grad():
        for name, order in {"a": of_a, "router_a": of_a, "b": of_b, "router_b": of_b}.items():
            own[name].copy_(own[name][order].clone())
        own["conditional"].copy_(own["conditional"][..., of_b].clone())
    assert_close(model(x), before, rtol=1e-12, atol=1e-12)
    assert torch.equal(of_a[layer.selection.A], chosen.A)
    assert torch.equal(of_b[layer.selection.B], chosen.B)


@pytest.mark.parametrize("preset", [MixLoraConfig.paper, MixLoraConfig.official])
def test_a_new_adapter_leaves_the_base_as_it_is_to_the_bit(preset):
    inputs = batch([9, 6, 12], [3, 2, 4])
    model = get_peft_model(llama(), preset(r=2, num_factors=6, target_modules=["q_proj", "up_proj"]))
    assert torch.equal(model(**inputs).logits, llama()(**inputs).logits)


@pytest.mark.parametrize(("init", "spread"), [("gaussian", 1.0), ("kaiming", 3**-0.5)])
def test_factors_of_a_start_with_the_spread_their_distribution_has(init, spread):
    torch.manual_seed(0)
    config = MixLoraConfig(r=2, num_factors=64, factor_init=init, target_modules=["linear"])
    (layer,) = layers(get_peft_model(Single(400, 3), config)).values()
    a = layer.mixlora_A["default"] * 400**0.5
    assert_close(a.std().item(), spread, rtol=0.02, atol=0)
    assert (a.abs().max() <= 1) == (init == "kaiming")
    assert not layer.mixlora_B["default"].any()


def test_the_selection_has_ranked_indices_and_the_scores_they_were_ranked_by():
    model = single(MixLoraConfig.paper(r=R, num_factors=E), D_IN, D_OUT)
    (layer,) = layers(model).values()
    assert layer.selection is None
    model(torch.randn(4, 3, D_IN, dtype=torch.float64, generator=torch.Generator().manual_seed(0)))
    chosen = layer.selection
    for indices, scores in ((chosen.A, chosen.scores_A), (chosen.B, chosen.scores_B)):
        assert (indices.shape, indices.dtype, scores.shape) == ((4, R), torch.int64, (4, E))
        assert torch.equal(indices, scores.sort(dim=-1, descending=True).indices[:, :R])
        assert not scores.requires_grad
    assert_close(chosen.scores_A.sum(dim=-1), torch.ones(4, dtype=torch.float64))
    assert_close(chosen.scores_B.sum(dim=-1), torch.full((4,), 2.0, dtype=torch.float64))


def test_a_layer_called_by_itself_pools_over_all_positions_and_says_so_once(recwarn):
    model = single(MixLoraConfig.paper(r=R, num_factors=E), D_IN, D_OUT)
    (layer,) = layers(model).values()
    x = torch.randn(2, 3, D_IN, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    y = layer(x)
    said = [str(w.message) for w in recwarn if "MixLoRA" in str(w.message)]
    assert len(said) == 1 and "an input of shape (2, 3, 5)" in said[0] and "pools over all its positions" in said[0]
    assert_close(y, model(x), rtol=1e-12, atol=1e-12)
    layer(x + 1)
    layer(x[:, :2])
    assert len([w for w in recwarn if "MixLoRA" in str(w.message)]) == 1
