"""A plan says what is then written."""

import json

import pytest

from interference.config import build
from interference.measurement import plan
from interference.measurement.compute import compute_config
from interference.measurement.prober import Prober
from tests.support.checkpoints import write_llava, write_pictures, write_task

PROBES = [{}, {"granularity": "group"}, {"weight_space": True}, {"unit_size": 3, "layers": [0, 1, 2]}]


@pytest.mark.parametrize("probe", PROBES)
def test_sizes_are_those_that_are_written(tiny, tmp_path, monkeypatch, probe):
    # enough units that the file is not mostly its header
    settings = tiny.config(tmp_path / "run", **{"samples": 8, "modules": ["q_proj", "mlp"]} | probe)
    found = plan.plan(settings)
    spooled = []
    run = compute_config(settings, lambda stage, done, total: spooled.append(spool_bytes(tmp_path, stage)))
    assert found.units == len(run.probes) and found.seconds is None
    chosen = found.choices[found.choices["this one"] == "yes"].iloc[0]
    assert (chosen["units"], chosen["blocks"]) == (len(run.probes), len(run.blocks))
    stored = sum(run.grams([name])._packed[name].nbytes for name in run.blocks["name"])
    assert chosen["MiB"] * 2**20 == stored
    header = (tmp_path / "run" / "gram.safetensors").stat().st_size - stored
    assert 0 < header < 200 * len(run.blocks)
    assert found.spool == pytest.approx(max(spooled), rel=0.25)


def spool_bytes(folder, stage):
    """Bytes of the tensors that wait on disk, without the files' headers."""
    total = 0
    for path in folder.glob("run.partial/part-*.safetensors"):
        raw = path.read_bytes()
        total += len(raw) - 8 - int.from_bytes(raw[:8], "little")
    return total if stage == "gradients" else 0


def test_coarser_choices_are_offered(tiny):
    choices = plan.plan(tiny.config(layers=[0, 2])).choices
    assert choices["granularity"].tolist() == ["module", "group", "layer"] and choices["blocks"].tolist() == [28, 8, 4]
    assert choices["units"].tolist() == [12] * 3 and choices["unit_size"].tolist() == [1] * 3
    assert choices["loses"][0] == "nothing" and choices["this one"].tolist() == ["yes", "", ""]
    assert choices["MiB"][0] == 28 * 12 * 13 * 2 / 2**20


def test_larger_units_are_offered_where_every_task_has_two_of_them(tiny, tmp_path):
    tasks = {name: {"file": str(write_task(tmp_path / name, count))} for name, count in (("a", 29), ("b", 20))}
    settings = build({**tiny.data(layers=[0, 2], samples=40), "tasks": tasks}, "test")
    choices = plan.plan(settings).choices
    assert choices["units"].tolist() == [49, 4] * 3 and choices["unit_size"].tolist() == [1, 10] * 3
    assert choices["blocks"].tolist() == [28, 28, 8, 8, 4, 4]
    coarser = build({**tiny.data(layers=[0, 2], samples=40, unit_size=10), "tasks": tasks}, "test")
    assert plan.plan(coarser).choices["units"].tolist() == [4] * 3  # what was offered comes true


def test_weights_are_read_only_to_be_timed(tiny, monkeypatch):
    from interference.measurement import checkpoint

    found = plan.plan(tiny.config(), timed=True)
    assert found.seconds.keys() == {"load", "gradients", "gram"} and min(found.seconds.values()) > 0
    assert found.memory == pytest.approx(plan.peak_memory(), rel=0.01)  # whether it is compute's: test_memory
    assert found.gpu_memory is None
    monkeypatch.setattr(checkpoint, "load_model", lambda config: pytest.fail("the model was loaded"))
    assert plan.plan(tiny.config()).width == (7 * 4 * 32 + 4 * (32 + 16 + 16 + 32 + 48 + 48 + 32)) + 4 * 16


def test_the_command(interference, tiny, tmp_path):
    said = interference("plan", *tiny.arguments(), "--layers", "1")
    assert said.code == 0, said.err
    assert "16 units of 14 blocks, " in said.out
    assert " of gradients while computing, and 7.44 KiB of Gram matrices, which the run keeps" in said.out
    assert "\nmemory: " in said.out and "\ntime: " in said.out and "(seconds: load " in said.out
    quick = ["--layers", "1", "--samples", "4", "--no-time"]
    assert (
        "memory and time were not measured; leave out --no-time to measure them"
        in interference("plan", *tiny.arguments(), *quick).out
    )
    found = json.loads(interference("plan", *tiny.arguments(), *quick, "--json").out)
    assert [row["blocks"] for row in found["choices"]] == [14, 4, 2]
    assert (found["units"], found["blocks"], found["seconds"], found["memory"]) == (8, 14, None, None)
    assert found["spool"] == 8 * 4 * found["width"] and found["stored"] == 14 * 8 * 9 * 2
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("extra", "message"),
    [
        (["--layers", "8"], "layer 8 is not among the adapted layers: 0-2 (counted from 0)"),
        (["--adapter", "no/adapter"], "there is no PEFT adapter at no/adapter (no adapter_config.json can be read: "),
    ],
)
def test_a_plan_refuses_what_compute_refuses(refused, tiny, extra, message):
    assert refused("plan", *tiny.arguments(), *extra).startswith(message)


def test_an_adapter_of_another_model_is_refused(refused, tiny, tmp_path):
    config = json.loads((tiny.adapter / "adapter_config.json").read_text()) | {"target_modules": ["c_attn"]}
    (tmp_path / "adapter_config.json").write_text(json.dumps(config))
    said = refused("plan", *tiny.arguments(), "--adapter", tmp_path, "--no-time")
    assert said.startswith(f"the adapter at {tmp_path} does not fit the base {tiny.base}: Target modules {{'c_attn'}}")


def test_gram_matrices_are_timed_by_a_full_part(tiny, tmp_path, monkeypatch):
    pictured = write_llava(tmp_path)
    text = write_task(tmp_path / "text.jsonl", 3)
    write_pictures(tmp_path, [f"{k}.png" for k in range(8)])
    seen = write_task(tmp_path / "seen.jsonl", 8, 1, lambda k, values: values | {"image": f"{k}.png"})
    tasks = {name: {"file": str(file), "images": str(tmp_path)} for name, file in (("text", text), ("seen", seen))}
    model = {"base": str(pictured / "base"), "adapter": str(pictured / "adapter")}
    settings = build({"model": model, "tasks": tasks, "probe": {"batch_size": 8}}, "test")
    rows, own = [], plan._gram_seconds
    monkeypatch.setattr(
        plan,
        "_gram_seconds",
        lambda builder, spool, units, size: (
            rows.append((size, len(spool.read(0, builder.blocks[0].name)))),
            own(builder, spool, units, size),
        )[1],
    )
    plan.plan(settings, timed=True)
    assert rows == [(8, 8)]


def test_every_part_that_is_timed_is_measured(tiny, monkeypatch):
    measured, own = [], Prober._measure

    def measure(self, part, batches):
        measured.append(len(part.units))
        return own(self, part, batches)

    monkeypatch.setattr(Prober, "_measure", measure)
    for batch_size, parts in ((1, 12), (5, 3), (64, 1)):
        measured.clear()
        plan.plan(tiny.config(batch_size=batch_size), timed=True)
        assert len(measured) == 1 + min(parts, 5)  # one to warm up
        assert measured[-1] == min(batch_size, 12)  # a full one, of which Gram matrices are then made
