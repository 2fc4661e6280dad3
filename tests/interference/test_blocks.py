"""Names of blocks, their frame, and how a scope picks among them."""

import pytest

from interference import blocks
from interference.blocks import Block, Component, Granularity, Scope, Side
from interference.errors import ScopeError

L = Component.LANGUAGE


def block(layer, module, group, side, size=6):
    return Block(L, layer, module, group, side, size)


FRAME = blocks.to_frame(
    [
        *(
            block(k, m, g, s)
            for k in (0, 1, 2, 7)
            for m, g in (("q_proj", "attention"), ("up_proj", "mlp"))
            for s in (Side.A, Side.B)
        ),
        block(None, "lm_head", "head", Side.A),
        Block(Component.PROJECTOR, None, "linear_1", "projector", Side.B, 3),
        block(2, "up_proj", "mlp", Side.W, 12),
    ]
)


def test_names():
    assert block(5, "q_proj", "attention", Side.A).name == "language.5.q_proj.A"
    assert block(None, "lm_head", "head", Side.B).name == "language.lm_head.B"


def test_the_frame_keeps_types():
    assert FRAME["layer"].dtype == "Int64" and FRAME["layer"].isna().sum() == 2
    assert FRAME.iloc[-1].tolist() == ["language.2.up_proj.W", "language", 2, "up_proj", "mlp", "W", 12]
    assert type(FRAME["side"][0]) is str and FRAME["name"].is_unique


def test_an_empty_frame_has_the_columns():
    assert list(blocks.to_frame([])) == ["name", "component", "layer", "module", "group", "side", "size"]


@pytest.mark.parametrize(
    ("scope", "names"),
    [
        ({"layers": [7], "modules": ["q_proj"]}, ["language.7.q_proj.A", "language.7.q_proj.B"]),
        ({"layers": [0, 2], "modules": ["mlp"], "side": "A"}, ["language.0.up_proj.A", "language.2.up_proj.A"]),
        ({"modules": ["projector"]}, ["projector.linear_1.B"]),
        ({"modules": ["head", "projector"]}, ["language.lm_head.A", "projector.linear_1.B"]),
        ({"space": "weight"}, ["language.2.up_proj.W"]),
        ({"space": "weight", "side": "W"}, ["language.2.up_proj.W"]),
    ],
)
def test_select(scope, names):
    assert blocks.select(FRAME, Scope(**scope))["name"].tolist() == names


def test_select_of_nothing_is_everything_but_the_weights():
    assert len(blocks.select(FRAME, Scope())) == len(FRAME) - 1
    assert blocks.select(FRAME, Scope(modules=["language"]))["component"].unique().tolist() == ["language"]


@pytest.mark.parametrize(
    ("scope", "message"),
    [
        ({"layers": [3]}, r"^layer 3 is not among the adapted layers: 0-2, 7 \(counted from 0\)$"),
        ({"layers": [-1]}, r"^layer -1 is not among the adapted layers: 0-2, 7 "),
        (
            {"modules": ["q_porj"]},
            "^module 'q_porj' is not among those here: attention, head, language, linear_1, lm_h",
        ),
        ({"side": "C"}, "^side 'C' is not one of A, B, W, router-A, router-B, router-AB$"),
        ({"layers": []}, r"^no block matches layers=\[\], modules=None, side=None; widen the scope$"),
        (
            {"space": "weight", "side": "A"},
            "^side is 'A', but the weight space has no sides; leave side out, or space$",
        ),
        ({"space": "x"}, "^space 'x' is not one of parameters, weight, adam$"),
        (
            {"modules": ["head"], "side": "B"},
            r"^no block matches layers=None, modules=\['head'\], side=B; widen the scope$",
        ),
    ],
)
def test_what_is_not_there_is_told(scope, message):
    with pytest.raises(ScopeError, match=message):
        blocks.select(FRAME, Scope(**scope))


@pytest.mark.parametrize(("name", "given"), [("layers", 5), ("modules", "mlp")])
def test_a_single_layer_or_module_is_no_scope(name, given):
    with pytest.raises(ScopeError, match=rf"^{name} is {given!r}, but must be a list, as \[{given!r}\]$"):
        Scope(**{name: given})


def test_scopes_are_equal_by_what_they_name_and_can_be_keys():
    assert Scope([5], ["mlp"], "A") == Scope((5,), ("mlp",), Side.A, "parameters") != Scope([5], ["mlp"])
    assert {Scope(range(2)): 1}[Scope([0, 1])] == 1


def test_a_scope_is_split_from_other_options_and_gives_its_own_back():
    scope, others = Scope.split({"layers": [5], "reduce": "mean-of-ratios", "side": "A"})
    assert (scope, others) == (Scope([5], side="A"), {"reduce": "mean-of-ratios"})
    assert Scope.split(scope.options) == (scope, {}) and Scope.split({}) == (Scope(), {})


def test_coarsen():
    q = block(3, "q_proj", "attention", Side.B)
    assert blocks.coarsen(q, Granularity.MODULE) == q
    assert blocks.coarsen(q, Granularity.GROUP).name == "language.3.attention.B"
    assert blocks.coarsen(q, Granularity.LAYER) == block(3, "all", "all", Side.B)
