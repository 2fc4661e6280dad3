"""From a model to what examples select, on disk and back, and its figures."""

import json
import os
import re
import shutil
from pathlib import Path
from xml.etree import ElementTree

import matplotlib as mpl
import numpy as np
import pandas as pd
import pytest
import torch
from checkpoints import data, tokenizer, write_adapter, write_base, write_llava, write_pictures, write_task
from matplotlib.image import AxesImage
from mixtures import mixture
from models import PROJECTIONS, llama, llava, lora
from test_run import full
from test_selections import activated, chosen, random_mixture
from test_trained import trained

from interference import checkpoint, config, factor_figures, factors, figures, neighbours, observation, sampled, stored
from interference.computation import compute_config
from interference.errors import CheckpointError, MeasurementError, RunError, ScopeError
from interference.factors import Factors
from mixlora.data.collation import Collator
from mixlora.data.examples import Example, Turn
from mixlora.locks import locked

TASKS = {"red": 0, "blue": 1, "green": 2}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A base, a LoRA, a MixLoRA in all of whose modules, and three tasks."""
    here = tmp_path_factory.mktemp("factors")
    write_base(here / "base")
    write_adapter(here / "lora")
    write_adapter(here / "mixture", mixture(target_modules=["q_proj", "up_proj"]))
    for name, seed in TASKS.items():
        write_task(here / f"{name}.jsonl", seed=seed)
    return here


def asked(folder, adapter="mixture", tasks=TASKS, **probe):
    files = {name: folder / f"{name}.jsonl" for name in tasks}
    values = data(folder / "base", folder / adapter, files, **{"layers": [0, 2], **probe})
    return config.build(values, "the test")


@pytest.fixture(scope="module")
def found(folder, tmp_path_factory):
    """What the examples select of the MixLoRA, saved in a directory that no test changes."""
    out = tmp_path_factory.mktemp("found") / "whole"
    return observation.compute_config(asked(folder), out), out


def test_factors_are_those_that_a_forward_with_labels_chooses(folder, found):
    given, settings = found[0].selections, asked(folder)
    model = checkpoint.load_model(settings.model)
    collator = Collator(tokenizer())
    examples = [example for task in sampled.read(settings).values() for example in task]
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
    given = observation.compute_config(settings, tmp_path / "out").selections
    assert not given.mixture and len(given.blocks) == len(PROJECTIONS) and set(given.blocks["side"]) == {"A"}
    assert set(given.blocks["factors"]) == {4}
    model = checkpoint.load_model(settings.model)
    collator, seen = Collator(tokenizer()), {}
    for name, module in model.get_base_model().model.layers[1].named_modules():
        if name.endswith("_proj"):
            module.register_forward_hook(lambda m, x, y, name=name: seen.update({name.split(".")[-1]: (m, x[0])}))
    for row, example in enumerate(example for task in sampled.read(settings).values() for example in task):
        with torch.no_grad():
            model(input_ids=torch.tensor([collator.encode_prompt(example).input_ids]))
        for name, (module, x) in seen.items():
            expected = (x[0] @ module.lora_A["default"].weight.T).mean(dim=0)
            got = torch.tensor(given.values[f"language.1.{name}.A"][row])
            torch.testing.assert_close(got, expected.detach(), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("adapter", ["lora", "mixture"])
def test_the_batch_size_does_not_matter(folder, tmp_path, adapter):
    one, four = (
        observation.compute_config(asked(folder, adapter, batch_size=size), tmp_path / str(size)).selections.values
        for size in (1, 4)
    )
    for name, value in one.items():
        np.testing.assert_allclose(four[name], value, rtol=1e-4, atol=1e-5)


def test_dora_activations_are_those_of_its_a(tmp_path):
    model, examples = lora(llama(), use_dora=True), words()
    given = observation.compute(model, Collator(tokenizer()), examples, layers=[0], modules=["q_proj"]).selections
    weight = model.get_base_model().model.layers[0].self_attn.q_proj.lora_A["default"].weight
    layer = model.get_base_model().model.layers[0]
    ids = torch.tensor([Collator(tokenizer()).encode_prompt(examples["a"][0]).input_ids])
    x = layer.input_layernorm(model.get_base_model().model.embed_tokens(ids))
    expected = (x[0] @ weight.T).mean(dim=0).detach().numpy()
    np.testing.assert_allclose(given.values["language.0.q_proj.A"][0], expected, rtol=1e-4, atol=1e-5)


def words():
    """Tasks a and b of four examples, whose prompts are of 1 to 6 words."""
    return {
        task: [
            example(task, k, " ".join(f"w{(7 * k + n + 20 * place) % 40}" for n in range(1 + (k + place) % 6)))
            for k in range(4)
        ]
        for place, task in enumerate("ab")
    }


def example(task, k, text):
    return Example(f"{task}{k}", task, (Turn("user", text), Turn("assistant", "w1")), None, f"{task} {k}")


@pytest.mark.parametrize("routing", ["random", "task"])
def test_other_routings_are_observed(routing):
    options = {"task_definitions": {"a": "w1 w2", "b": "w9 w8 w7"}} if routing == "task" else {}
    model = mixture(target_modules=["q_proj"], routing=routing, **options)
    if routing == "task":
        model.base_model.encode_tasks(tokenizer())
    collator = Collator(tokenizer())
    first, again, other = (observation.compute(model, collator, words(), seed=seed) for seed in (3, 3, 4))
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
    observation.compute(model, Collator(tokenizer()), words())
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
    given = observation.compute_config(config.build(values, "the test"), tmp_path / "out").selections
    assert set(given.blocks["component"]) == {"language", "vision"}
    by_picture = pd.Series(map(tuple, given.values["vision.1.fc1.A"])).groupby(given.tasks).agg(list)
    assert sorted(by_picture["a"]) == sorted(by_picture["b"])  # the same eight pictures
    plain = config.build({**values, "tasks": text_tasks(tmp_path)}, "the test")
    with pytest.raises(Exception, match="does not keep the 5 examples of a batch apart"):
        observation.compute_config(plain, tmp_path / "text")
    assert not (tmp_path / "text").exists()


def text_tasks(folder):
    return {task: {"file": str(write_task(folder / f"text-{task}.jsonl", seed=k))} for k, task in enumerate("ab")}


def test_a_broken_checkpoint_is_told(folder):
    for model, name in ((mixture(), "mixlora_B"), (lora(llama()), "lora_A")):
        with torch.no_grad():
            next(value for key, value in model.named_parameters() if name in key).fill_(float("nan"))
        with pytest.raises(MeasurementError, match=r"layers\.0\.self_attn\.q_proj gives values that are not finite"):
            observation.compute(model, Collator(tokenizer()), words())


def test_what_was_saved_is_loaded(folder, found):
    given, out = found
    again = factors.load(out)
    assert sorted(path.name for path in out.iterdir()) == [
        "examples.parquet",
        "factors.json",
        "selections.safetensors",
    ]
    pd.testing.assert_frame_equal(again.examples, given.examples)
    pd.testing.assert_frame_equal(again.selections.blocks, given.selections.blocks)
    assert again.selections.tasks == given.selections.tasks and again.selections.mixture
    assert again.selections.values.keys() == given.selections.values.keys()
    for name, value in given.selections.values.items():
        np.testing.assert_array_equal(again.selections.values[name], value)
    assert repr(again) == "Factors(MIXLORA; 18 examples: red 6, blue 6, green 6; 8 blocks)"
    meta = json.loads((out / "factors.json").read_text())
    assert meta["schema"] == 1 and meta["adapter_kind"] == "MIXLORA" and meta["config"]["out"] is None
    assert meta["fingerprints"] == {"model": checkpoint.fingerprint(checkpoint.load_model(asked(folder).model))}
    assert config.build(meta["config"], "factors.json").probe.layers == [0, 2]


def test_numbers_are_of_the_kind_that_the_adapter_writes(folder, found, tmp_path):
    out = tmp_path / "lora"
    given = observation.compute_config(asked(folder, "lora"), out)
    again = factors.load(out).selections
    assert {value.dtype for value in again.values.values()} == {np.dtype(np.float32)}
    for name, value in given.selections.values.items():
        np.testing.assert_array_equal(again.values[name], value)
    as_mixture = spoilt(out, tmp_path / "mixture", lambda meta: meta.update(adapter_kind="MIXLORA"))
    assert refused(as_mixture).endswith("is of float32, not of whole numbers")
    as_lora = spoilt(found[1], tmp_path / "other", lambda meta: meta.update(adapter_kind="LORA"))
    assert refused(as_lora).endswith("is of int32, not of real numbers")


def test_two_processes_do_not_compute_the_same_factors(folder, tmp_path):
    out = tmp_path / "out"
    words = re.escape(f"another process is computing {out}; wait for it, or choose another --out")
    with locked(tmp_path / ".out.lock", f"computing {out}"), pytest.raises(RunError, match=words):
        observation.compute_config(asked(folder), out)
    assert list(tmp_path.iterdir()) == []


def spoilt(out, to, change):
    """A copy of the factors, its factors.json changed."""
    shutil.copytree(out, to)
    meta = json.loads((to / "factors.json").read_text())
    change(meta)
    meta.pop("seal", None)
    (to / "factors.json").write_text(json.dumps(meta))
    return to


def refused(path) -> str:
    with pytest.raises(RunError) as told:
        factors.load(path)
    return str(told.value)


def test_what_is_no_factors_is_refused_in_words(found, tmp_path):
    out = found[1]
    assert refused(tmp_path / "none") == f"there are no factors at {tmp_path / 'none'}"
    (tmp_path / "empty").mkdir()
    assert refused(tmp_path / "empty") == f"{tmp_path / 'empty'} holds no factors: it has no factors.json"
    newer = spoilt(out, tmp_path / "newer", lambda meta: meta.update(schema=2))
    assert refused(newer) == f"{newer} has schema 2, but this version reads schema 1; update task-interference"
    for name, change in {
        "kind": lambda meta: meta.update(adapter_kind="IA3"),
        "blocks": lambda meta: meta.pop("blocks"),
        "sums": lambda meta: meta["checksums"].update({"../other": "0"}),
    }.items():
        assert "factors.json is damaged" in refused(spoilt(out, tmp_path / name, change))
    few = spoilt(out, tmp_path / "few", lambda meta: [block.update(factors=2) for block in meta["blocks"]])
    assert "names a factor that is not among 2" in refused(few)
    other = spoilt(out, tmp_path / "other", lambda meta: meta["blocks"][0].update(name="language.9.q_proj.A"))
    assert "it lacks block language.9.q_proj.A" in refused(other)
    cut = tmp_path / "cut"
    shutil.copytree(out, cut)
    whole = (cut / "selections.safetensors").read_bytes()
    (cut / "selections.safetensors").write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    assert "selections.safetensors is damaged: its checksum is another" in refused(cut)
    (cut / "factors.json").write_text("[]")
    assert "factors.json is damaged" in refused(cut)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda meta: meta.update(seed=2**32), "its seed is 4294967296; compute the factors again"),
        (lambda meta: meta.update(seed="3"), "its 'seed' is '3'; compute the factors again"),
        (lambda meta: meta.update(schema=0), None),
        (lambda meta: meta["blocks"][0].pop("factors"), "its blocks cannot be read ("),
        (lambda meta: meta["blocks"][0].update(layer=0.5), "its blocks cannot be read ("),
        (lambda meta: meta["blocks"][0].update(name=None), "a block in it has no name; compute the factors again"),
        (lambda meta: meta["blocks"][0].update(module=3), "a block in it has no name; compute the factors again"),
        (lambda meta: meta["blocks"].append(meta["blocks"][0]), "a block in it stands twice or has no factors; comp"),
        (lambda meta: meta["blocks"][0].update(factors=0), "a block in it stands twice or has no factors; compute the"),
    ],
)
def test_damage_to_the_record_is_told(found, tmp_path, change, words):
    wrong = spoilt(found[1], tmp_path / "wrong", change)
    if words is None:
        assert refused(wrong) == f"{wrong} has schema 0, but this version reads schema 1; update task-interference"
    else:
        assert refused(wrong).startswith(f"{wrong / 'factors.json'} is damaged: {words}")


def test_damage_to_the_examples_is_told(found, tmp_path):
    def without_task(folder):
        examples = pd.read_parquet(folder / "examples.parquet").assign(task=None)
        examples.to_parquet(folder / "examples.parquet")

    def fewer(folder):
        pd.read_parquet(folder / "examples.parquet")[:-1].to_parquet(folder / "examples.parquet")

    for name, change, words in (
        ("task", without_task, "examples.parquet is damaged: a task is missing"),
        ("fewer", fewer, "is not of 17 examples"),
    ):
        folder = tmp_path / name
        shutil.copytree(found[1], folder)
        change(folder)
        assert "examples.parquet is damaged: its checksum is another" in refused(folder)
        sums = {file: stored.checksum(folder / file) for file in ("examples.parquet", "selections.safetensors")}
        assert words in refused(
            spoilt(folder, tmp_path / f"{name}-told", lambda meta, now=sums: meta.update(checksums=now))
        )


def test_factors_of_a_notebook_are_not_taken_for_those_of_a_configuration(folder, found, tmp_path):
    settings, out = asked(folder), found[1]
    assert observation.kept_or_computed(settings, out).examples.equals(found[0].examples)
    for name, change in {
        "none": lambda meta: meta.update(config=None),
        "gone": lambda meta: meta.pop("config"),
    }.items():
        other = spoilt(out, tmp_path / name, change)
        with pytest.raises(RunError, match="already holds factors; choose another --out or delete it first"):
            observation.kept_or_computed(settings, other)


@pytest.mark.parametrize("kind", ["adapter", "task"])
def test_factors_of_what_has_changed_since_are_refused(folder, found, tmp_path, kind):
    settings, out = asked(folder), tmp_path / "factors"
    shutil.copytree(found[1], out)
    changed = {
        "adapter": Path(settings.model.adapter) / "adapter_model.safetensors",
        "task": Path(next(iter(settings.tasks.values())).file),
    }[kind]
    before = changed.stat()
    os.utime(changed, (before.st_atime, (out / "factors.json").stat().st_mtime + 10))
    try:
        with pytest.raises(RunError) as told:
            observation.kept_or_computed(settings, out)
    finally:
        os.utime(changed, (before.st_atime, before.st_mtime))
    assert str(told.value) == f"{changed} has changed since {out} was computed; delete that, or choose another --out"


def test_nothing_is_overwritten_and_nothing_is_left_behind(folder, found, tmp_path, monkeypatch):
    given, out = found
    with pytest.raises(RunError, match="already holds factors; choose another --out or delete it first"):
        given.save(out)
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "mine.txt").write_text("mine")
    with pytest.raises(RunError, match="exists and holds something else"):
        observation.compute_config(asked(folder), tmp_path / "other")
    (tmp_path / "free").mkdir()
    monkeypatch.setattr(factors, "save_file", full)
    with pytest.raises(RunError, match="No space left on device"):
        given.save(tmp_path / "free")
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith(".")] == []
    assert list((tmp_path / "free").iterdir()) == []


def test_wrong_questions_are_refused_before_the_model_is_loaded(folder, tmp_path, monkeypatch):
    monkeypatch.setattr(checkpoint, "load_model", None)
    with pytest.raises(ScopeError, match="there is only task 'red'; give at least 2"):
        observation.compute_config(asked(folder, tasks=["red"]), tmp_path / "out")
    with pytest.raises(Exception, match="more than max_length 3; raise max_length or drop the record"):
        observation.compute_config(asked(folder, max_length=3), tmp_path / "out")
    with pytest.raises(CheckpointError, match="no LoRA or MixLoRA adapter"):
        observation.compute(llama(), Collator(tokenizer()), words())
    assert not (tmp_path / "out").exists()


def test_tables_say_everything(folder, found, tmp_path):
    given = found[0]
    values = asked(folder).model_dump(mode="json") | {"out": str(tmp_path / "run")}
    run = compute_config(config.build(values, "the test"))
    embedding = neighbours.embed(given.selections, perplexity=5, k=3, permutations=50)
    tables = factors.tables(given, embedding, run)
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
    tables = factors.tables(given, embedding)
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
    given = observation.compute_config(config.build(values, "the test"), tmp_path / "factors")
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
    figure = factor_figures.embedding(given, embedded, unseen=["b"], title="$\\alpha$ of a")
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
    assert title.startswith("$\\alpha$ of a\n10 nearest by selections of the same task: ")
    assert f"{embedded.purity.value:.0%} (chance {embedded.purity.chance:.0%}" in title
    assert title.endswith(f"\n10 nearest on this map: {embedded.map_purity.value:.0%}")
    with pytest.raises(ScopeError, match="unseen task 'z' is not among the tasks: a, b, c"):
        factor_figures.embedding(given, embedded, unseen=["z"])


def test_use_is_a_panel_a_module_and_side_with_dead_factors_crossed():
    made = chosen("aabb", [[0, 1], [0, 2], [0, 1], [0, 2]], [[0, 1], [2, 3], [0, 1], [2, 3]])
    figure = factor_figures.usage(Factors(made, pd.DataFrame({"task": made.tasks}), {"adapter_kind": "MIXLORA"}))
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
    made = {"map": factor_figures.embedding(given, embedded), "use": factor_figures.usage(found[0])}
    for name, figure in made.items():
        for path in figures.save(figure, tmp_path, name):
            assert path.stat().st_size > 5000
        ElementTree.fromstring((tmp_path / f"{name}.svg").read_text())
    assert dict(mpl.rcParams) == before
    assert [axes.get_title() for axes in made["use"].axes[:4]] == ["q_proj, A", "up_proj, A", "q_proj, B", "up_proj, B"]
