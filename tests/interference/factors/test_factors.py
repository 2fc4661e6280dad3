"""From a model to what examples select, on disk and back, and its figures."""

import json
from xml.etree import ElementTree

import matplotlib as mpl
import numpy as np
import pandas as pd
import pytest
import torch
from matplotlib.image import AxesImage

from interference import config
from interference import factors as library
from interference.errors import MeasurementError, ScopeError
from interference.factors import Factors, neighbours, observer
from interference.figures import factors as maps
from interference.figures import matrices
from interference.measurement import checkpoint, sample
from interference.measurement.compute import compute_config
from mixlora.data.collation import Collator
from tests.support.checkpoints import data, tokenizer, write_llava, write_pictures, write_task
from tests.support.mixtures import mixture
from tests.support.models import PROJECTIONS, llama, llava, lora
from tests.support.observed import TASKS, asked, words
from tests.support.selections import activated, chosen, random_mixture
from tests.support.trainings import trained


def test_factors_are_those_that_a_forward_with_labels_chooses(folder, found):
    given, settings = found[0].selections, asked(folder)
    model = checkpoint.load_model(settings.model)
    collator = Collator(tokenizer())
    examples = [example for task in sample.read(settings).examples.values() for example in task]
    assert found[0].examples["id"].tolist() == [example.id for example in examples]
    assert found[0].examples["task"].tolist() == given.tasks == ["red"] * 6 + ["blue"] * 6 + ["green"] * 6
    assert given.blocks["name"].tolist() == [f"language.{layer}.{module}.{side}" for layer in (0, 2)
                                             for module in ("q_proj", "up_proj") for side in "AB"]  # fmt: skip
    assert given.mixture and set(given.blocks["factors"]) == {5}
    differ = 0
    for row, example in enumerate(examples):
        with torch.no_grad():
            model(**collator([example]))
        for layer in (0, 2):
            block = model.get_base_model().model.layers[layer]
            for name, module in (("q_proj", block.self_attn.q_proj), ("up_proj", block.mlp.up_proj)):
                assert given.values[f"language.{layer}.{name}.A"][row].tolist() == module.selection.A[0].tolist()
                assert given.values[f"language.{layer}.{name}.B"][row].tolist() == module.selection.B[0].tolist()
        differ += int(given.values["language.2.q_proj.A"][row, 0] != given.values["language.2.q_proj.A"][0, 0])
    assert differ  # not all the same


def test_factors_are_those_that_a_run_of_the_same_configuration_records(folder, found, tmp_path):
    values = asked(folder).model_dump(mode="json") | {"out": str(tmp_path / "run")}
    run = compute_config(config.build(values, "the test"))
    assert run.probes["ids"].tolist() == found[0].examples["id"].tolist()
    for name, value in found[0].selections.values.items():
        np.testing.assert_array_equal(run.selections[name], value)


def test_rank_activations_are_means_over_the_prompt(folder, tmp_path):
    settings = asked(folder, "lora", layers=[1])
    given = observer.compute_config(settings, tmp_path / "out").selections
    assert not given.mixture and len(given.blocks) == len(PROJECTIONS) and set(given.blocks["side"]) == {"A"}
    assert set(given.blocks["factors"]) == {4}
    model = checkpoint.load_model(settings.model)
    collator, seen = Collator(tokenizer()), {}
    for name, module in model.get_base_model().model.layers[1].named_modules():
        if name.endswith("_proj"):
            module.register_forward_hook(lambda m, x, y, name=name: seen.update({name.split(".")[-1]: (m, x[0])}))
    for row, example in enumerate(example for task in sample.read(settings).examples.values() for example in task):
        with torch.no_grad():
            model(input_ids=torch.tensor([collator.encode_prompt(example).input_ids]))
        for name, (module, x) in seen.items():
            expected = (x[0] @ module.lora_A["default"].weight.T).mean(dim=0)
            got = torch.tensor(given.values[f"language.1.{name}.A"][row])
            torch.testing.assert_close(got, expected.detach(), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("adapter", ["lora", "mixture"])
def test_the_batch_size_does_not_matter(folder, tmp_path, adapter):
    one, four = (
        observer.compute_config(asked(folder, adapter, batch_size=size), tmp_path / str(size)).selections.values
        for size in (1, 4)
    )
    for name, value in one.items():
        np.testing.assert_allclose(four[name], value, rtol=1e-4, atol=1e-5)


def test_dora_activations_are_those_of_its_a(tmp_path):
    model, examples = lora(llama(), use_dora=True), words()
    given = observer.compute(model, Collator(tokenizer()), examples, layers=[0], modules=["q_proj"]).selections
    weight = model.get_base_model().model.layers[0].self_attn.q_proj.lora_A["default"].weight
    layer = model.get_base_model().model.layers[0]
    ids = torch.tensor([Collator(tokenizer()).encode_prompt(examples["a"][0]).input_ids])
    x = layer.input_layernorm(model.get_base_model().model.embed_tokens(ids))
    expected = (x[0] @ weight.T).mean(dim=0).detach().numpy()
    np.testing.assert_allclose(given.values["language.0.q_proj.A"][0], expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("routing", ["random", "task"])
def test_other_routings_are_observed(routing):
    options = {"task_definitions": {"a": "w1 w2", "b": "w9 w8 w7"}} if routing == "task" else {}
    model = mixture(target_modules=["q_proj"], routing=routing, **options)
    if routing == "task":
        model.base_model.encode_tasks(tokenizer())
    collator = Collator(tokenizer())
    first, again, other = (observer.compute(model, collator, words(), seed=seed) for seed in (3, 3, 4))
    values = first.selections.values["language.1.q_proj.A"]
    np.testing.assert_array_equal(again.selections.values["language.1.q_proj.A"], values)
    if routing == "task":  # every example of a task is routed by the same vector
        assert (values[:4] == values[0]).all() and (values[4:] == values[4]).all()
    else:
        assert (other.selections.values["language.1.q_proj.A"] != values).any() and (values != values[0]).any()


def test_the_model_and_the_random_state_come_back_as_they_were():
    model = mixture().train()
    before = {name: (parameter.requires_grad, parameter.clone()) for name, parameter in model.named_parameters()}
    hooks = [len(module._forward_hooks) for module in model.modules()]
    torch.manual_seed(9)
    state = torch.get_rng_state()
    observer.compute(model, Collator(tokenizer()), words())
    assert torch.equal(torch.get_rng_state(), state)
    assert all(module.training for module in model.modules() if not isinstance(module, torch.nn.Identity))
    assert [len(module._forward_hooks) for module in model.modules()] == hooks
    for name, parameter in model.named_parameters():
        assert parameter.requires_grad == before[name][0] and torch.equal(parameter, before[name][1])


def test_pictures_are_part_of_the_prompt_and_of_the_tower(tmp_path):
    write_llava(tmp_path)
    adapted = mixture(llava(), target_modules=r".*(language_model|vision_tower).*(q_proj|fc1|up_proj)")
    adapted.save_pretrained(tmp_path / "mixed")
    (tmp_path / "images").mkdir()
    write_pictures(tmp_path / "images", [f"{k}.png" for k in range(8)])
    for seed, task in enumerate("ab"):
        write_task(tmp_path / f"{task}.jsonl", seed=seed, change=lambda k, values: {**values, "image": f"{k}.png"})
    values = data(tmp_path / "base", tmp_path / "mixed", {task: tmp_path / f"{task}.jsonl" for task in "ab"})
    for task in values["tasks"].values():
        task["images"] = str(tmp_path / "images")
    values["probe"] |= {"components": ["language", "vision"], "batch_size": 5, "samples": 8}
    given = observer.compute_config(config.build(values, "the test"), tmp_path / "out").selections
    assert set(given.blocks["component"]) == {"language", "vision"}
    by_picture = pd.Series(map(tuple, given.values["vision.1.fc1.A"])).groupby(given.tasks).agg(list)
    assert sorted(by_picture["a"]) == sorted(by_picture["b"])  # the same eight pictures
    plain = config.build({**values, "tasks": text_tasks(tmp_path)}, "the test")
    with pytest.raises(Exception, match="does not keep the 5 examples of a batch apart"):
        observer.compute_config(plain, tmp_path / "text")
    assert not (tmp_path / "text").exists()


def text_tasks(folder):
    return {task: {"file": str(write_task(folder / f"text-{task}.jsonl", seed=k))} for k, task in enumerate("ab")}


def test_a_broken_checkpoint_is_told(folder):
    for model, name in ((mixture(), "mixlora_B"), (lora(llama()), "lora_A")):
        with torch.no_grad():
            next(value for key, value in model.named_parameters() if name in key).fill_(float("nan"))
        with pytest.raises(MeasurementError, match=r"layers\.0\.self_attn\.q_proj gives values that are not finite"):
            observer.compute(model, Collator(tokenizer()), words())


def test_tables_say_everything(folder, found, tmp_path):
    given = found[0]
    values = asked(folder).model_dump(mode="json") | {"out": str(tmp_path / "run")}
    run = compute_config(config.build(values, "the test"))
    embedding = neighbours.embed(given.selections, perplexity=5, k=3, permutations=50)
    tables = library.tables(given, embedding, run)
    assert list(tables) == ["purity", "tasks", "layers", "information", "overlap", "interference"]
    assert tables["purity"]["neighbours on"].tolist() == ["selections", "map"]
    assert tables["purity"]["chance"].tolist() == pytest.approx([5 / 17] * 2)
    assert tables["tasks"].index.tolist() == list(TASKS) and "silhouette" in tables["tasks"]
    assert tables["layers"]["layer"].tolist() == [0, 2] and tables["layers"]["factors"].tolist() == [20, 20]
    assert tables["information"]["corrected"].is_monotonic_decreasing and len(tables["information"]) == 8
    (row,) = tables["interference"].to_dict("records")
    assert row["tasks"] == 3 and -1 <= row["spearman with overlap"] <= 1 and 0 < row["p"] <= 1
    json.dumps({name: json.loads(table.reset_index().to_json(orient="records")) for name, table in tables.items()})


def test_tables_of_a_lora_leave_information_out():
    random = np.random.default_rng(0)
    lora_like = activated("a" * 12 + "b" * 12, random.normal(size=(24, 4)) + 6 * (np.arange(24) > 11)[:, None])
    given = Factors(lora_like, pd.DataFrame({"task": lora_like.tasks}), {"adapter_kind": "LORA"})
    embedding = neighbours.embed(lora_like, perplexity=5, permutations=50)
    tables = library.tables(given, embedding)
    assert list(tables) == ["purity", "tasks", "layers", "overlap"]
    assert embedding.purity.value == pytest.approx(1) and (tables["tasks"]["silhouette"] > 0.5).all()
    assert tables["overlap"].loc["a", "a"] > 0.5 > -0.5 > tables["overlap"].loc["a", "b"]


@pytest.mark.parametrize("method", ["lora", "mixlora"])
def test_what_mixlora_train_leaves_is_observed(tmp_path, method):
    path = trained(tmp_path / "out", method)
    values = {
        "model": {"base": "mini", "adapter": str(path), "device": "cpu"},
        "tasks": {name: {"mini": "heldout"} for name in ("font_style", "name_shape")},
        "probe": {"samples": 12},
    }
    given = observer.compute_config(config.build(values, "the test"), tmp_path / "factors")
    assert len(given.selections.blocks) == 4 * 7 * (2 if method == "mixlora" else 1)
    widths = {value.shape for value in given.selections.values.values()}
    assert widths == {(24, 2 if method == "mixlora" else 4)}
    embedding = neighbours.embed(given.selections, perplexity=5, k=5, permutations=100)
    assert embedding.purity.value > 0.75 > embedding.purity.high  # pictures of other kinds, other questions


def shown(count=3, **options):
    made = random_mixture(examples=(12,) * count, planted=0.5, **options)
    return Factors(made, pd.DataFrame({"task": made.tasks}), {"adapter_kind": "MIXLORA"})


@pytest.fixture(scope="module")
def drawn():
    given = shown()
    return given, neighbours.embed(given.selections, perplexity=8, permutations=50)


def test_the_map_shows_every_example_once_and_unseen_tasks_hollow(drawn):
    given, embedded = drawn
    figure = maps.embedding(given, embedded, unseen=["b"], title="$\\alpha$ of a")
    (axes,) = figure.axes
    points = np.concatenate([np.asarray(dots.get_offsets()) for dots in axes.collections])
    np.testing.assert_allclose(points, embedded.points)
    filled = [len(dots.get_facecolor()) for dots in axes.collections]
    assert filled == [1, 0, 1]
    shapes = {tuple(dots.get_paths()[0].vertices.ravel().round(3)) for dots in axes.collections}
    assert len(shapes) == 3
    (legend,) = figure.legends
    assert [text.get_text() for text in legend.get_texts()] == ["a", "b", "c"]
    assert legend.get_title().get_text() == "task (hollow: unseen in training)"
    title = axes.get_title(loc="left")
    assert title.startswith("$\\alpha$ of a\nsame task among 10 nearest by selections: ")
    assert f"{embedded.purity.value:.0%} (chance {embedded.purity.chance:.0%}" in title
    assert title.endswith(f"\nsame task among 10 nearest on this map: {embedded.map_purity.value:.0%}")
    with pytest.raises(ScopeError, match="unseen task 'z' is not among the tasks: a, b, c"):
        maps.embedding(given, embedded, unseen=["z"])


def test_use_is_a_panel_a_module_and_side_with_dead_factors_crossed():
    made = chosen("aabb", [[0, 1], [0, 2], [0, 1], [0, 2]], [[0, 1], [2, 3], [0, 1], [2, 3]])
    figure = maps.usage(Factors(made, pd.DataFrame({"task": made.tasks}), {"adapter_kind": "MIXLORA"}))
    axes, bar = figure.axes
    (image,) = [child for child in axes.get_children() if isinstance(child, AxesImage)]
    np.testing.assert_allclose(image.get_array(), [[1, 0.5, 0.5, 0], [0.5] * 4])
    (crosses,) = axes.collections
    assert np.asarray(crosses.get_offsets()).tolist() == [[3, 0]]
    assert axes.get_title() == "q_proj, A" and bar.get_ylabel() == "share of examples that chose the factor (×: none)"
    assert [label.get_text() for label in axes.get_yticklabels()] == ["0", "1"]


def test_figures_become_files_and_change_no_setting(drawn, found, tmp_path):
    before = dict(mpl.rcParams)
    given, embedded = drawn
    made = {"map": maps.embedding(given, embedded), "use": maps.usage(found[0])}
    for name, figure in made.items():
        for path in matrices.save(figure, tmp_path, name):
            assert path.stat().st_size > 5000
        ElementTree.fromstring((tmp_path / f"{name}.svg").read_text())
    assert dict(mpl.rcParams) == before
    assert [axes.get_title() for axes in made["use"].axes[:4]] == ["q_proj, A", "up_proj, A", "q_proj, B", "up_proj, B"]
