"""The command `interference demo`: what it measured is kept, and never taken for that of another checkpoint."""

import json

import pytest
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file, save_file

from interference.cli import demo
from interference.errors import RunError
from interference.run import record
from mixlora.checkpoints.loading import load_base
from mixlora.common import terminal
from mixlora.common.sections import BaseSection

SIZE = demo.Size({"lora": (0,)}, trained=2, scored=2, probed=2)


def test_a_run_of_another_checkpoint_is_kept_and_named(tmp_path, capsys):
    checkpoint = tmp_path / "checkpoints" / "lora" / "snapshots" / "step-0"
    base = load_base(BaseSection(base="mini"))
    get_peft_model(base, LoraConfig(r=2, target_modules=["q_proj"])).save_pretrained(checkpoint)
    first = demo._measure(tmp_path, "lora", 0, SIZE)
    again = demo._measure(tmp_path, "lora", 0, SIZE)
    assert again.meta["computed"] == first.meta["computed"]  # read, not computed again
    weights = checkpoint / "adapter_model.safetensors"
    save_file({name: value + 1 for name, value in load_file(weights).items()}, weights)
    run = tmp_path / "lora" / "step-0"
    with pytest.raises(RunError) as error:
        demo._measure(tmp_path, "lora", 0, SIZE)
    said = f"the model's adapter weights changed since {run} was computed; compute it again"
    assert str(error.value) == f"{said}: delete {run}, and run the demo again"
    assert (run / "run.json").exists()


def test_a_run_of_a_version_without_some_keys_is_kept(tmp_path):
    """A key that did not exist when a run was stored has its default; another value than the default is refused."""
    checkpoint = tmp_path / "checkpoints" / "lora" / "snapshots" / "step-0"
    base = load_base(BaseSection(base="mini"))
    get_peft_model(base, LoraConfig(r=2, target_modules=["q_proj"])).save_pretrained(checkpoint)
    first = demo._measure(tmp_path, "lora", 0, SIZE)
    file = tmp_path / "lora" / "step-0" / "run.json"
    meta = json.loads(file.read_text())
    meta.pop("seal")
    for section, key in ((meta["config"], "lookahead"), (meta["config"]["probe"], "sketch")):
        assert section.pop(key) is None
    record.write_meta(file, meta)
    assert demo._measure(tmp_path, "lora", 0, SIZE).meta["computed"] == first.meta["computed"]
    for changed in ({"probe": {**meta["config"]["probe"], "samples": 3}}, {"unknown": 1}):
        record.write_meta(file, meta | {"config": meta["config"] | changed})
        with pytest.raises(RunError, match=r"step-0 is not what the demo computes; delete .*, or choose another --out"):
            demo._measure(tmp_path, "lora", 0, SIZE)


@pytest.mark.parametrize(("file", "command"), [("figures/mine.png", "demo"), ("report/mine.html", "report")])
def test_files_of_the_user_s_are_noticed_before_the_work(tmp_path, monkeypatch, file, command):
    monkeypatch.setattr(demo, "_train", lambda *_: pytest.fail("it trains"))
    (tmp_path / file).parent.mkdir()
    (tmp_path / file).write_bytes(b"mine")
    with pytest.raises(RunError, match=rf"{file} is not listed as written by interference {command}; "):
        demo.demo(tmp_path, terminal.console())
