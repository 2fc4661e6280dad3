"""Two processes train as one does at the same batch, and end together where something cannot be used."""

import json
import os
import signal
import sys
from multiprocessing.connection import wait
from pathlib import Path

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from torch import distributed, multiprocessing
from torch.testing import assert_close
from transformers import TrainerCallback

from mixlora.common.errors import MixLoraError
from mixlora.data import mini
from mixlora.training import run
from mixlora.training.corpus import gather
from mixlora.training.order import Epochs
from tests.support.killing import PRELOAD
from tests.support.small_processors import collating
from tests.support.trainings import made

torch.set_num_threads(1)
pytestmark = pytest.mark.slow
PROCESSES = multiprocessing.get_context("forkserver")
RECIPE = {"steps": None, "epochs": 2, "batch_size": 8, "micro_batch_size": 2, "logging_steps": 1, "save_steps": 4}
MIXTURE = {"r": 2, "num_factors": 4, "alpha": 4}
WORDS = ["red", "green", "blue", "one", "two", "three", "four", "five", "six", "seven"]
RUNS = {
    "lora-length": ("lora", "length"),
    "lora-task": ("lora", "task"),
    "mixlora-length": ("mixlora", "length"),
    "specialist-shuffled": ("specialist", "shuffled"),
    "lora-balanced": ("lora", "balanced", {"combine": "upgrad", "weights": {"see": 3}}),  # a process may lack a task
    "mixlora-shuffled": ("mixlora", "shuffled", {"combine": "random"}),
    "sum-shuffled": ("lora", "shuffled", {"weights": {"see": 3}}),
}


def records(folder):
    """Two tasks whose answers have 1 to 10 words; every third example of the second has no picture."""
    Image.new("RGB", (64, 64), "red").save(folder / "red.png")
    for task in ("say", "see"):
        lines = []
        for number in range(12):
            record = {
                "id": f"{task}{number}",
                "prompt": f"{task} {number}",
                "response": " ".join(WORDS[: number % 10 + 1]),
            }
            lines.append(record | ({} if task == "see" and number % 3 == 0 else {"image": "red.png"}))
        (folder / f"{task}.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))


def config_of(folder, name, out=None, **sections):
    method, order, *combining = RUNS.get(name, ("mixlora", "shuffled"))
    options = {
        "tasks": {task: {"file": str(folder / f"{task}.jsonl")} for task in ("say", "see")},
        "adapter": {"dropout": 0},
        "mixlora": MIXTURE | ({"routing": "random"} if name == "random" else {}),
        "training": RECIPE | {"order": order} | dict(*combining) | sections.pop("training", {}),
    } | sections
    return made(out or folder / "two" / name, method, **options)


class Killer(TrainerCallback):
    def on_step_end(self, args, state, control, **_):
        if state.global_step == 5:
            os.kill(os.getpid(), signal.SIGKILL)


def work(rank, meeting, configs, killed, told):
    """Train all as one of two processes; what could not be trained is written down."""
    os.dup2(os.open(told / f"stderr{rank}.txt", os.O_WRONLY | os.O_CREAT), sys.stderr.fileno())
    os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2"}
    os.environ["OMP_NUM_THREADS"] = "1"
    distributed.init_process_group("gloo", init_method=f"file://{meeting}", rank=rank, world_size=2)
    errors = {}
    for name, config in configs.items():
        try:
            run.train(config, callbacks=[lambda _: Killer()] if killed else [])
        except MixLoraError as error:
            errors[name] = [type(error).__name__, str(error)]
    (told / f"errors{rank}.json").write_text(json.dumps(errors))
    os._exit(0)  # taking a gloo group down can wait forever for one that has gone


def run_two(configs, told, killed=False):
    """Errors of each rank, by name."""
    meeting = told / f"meet{killed}"  # a file of its own for every two
    PROCESSES.set_forkserver_preload(PRELOAD)
    both = [PROCESSES.Process(target=work, args=(rank, meeting, configs, killed, told)) for rank in (0, 1)]
    for process in both:
        process.start()
    wait([process.sentinel for process in both], timeout=120)
    for process in both:
        process.join(5)  # none waits for the other
        process.kill()
    expected = -signal.SIGKILL if killed else 0
    said = [(told / f"stderr{rank}.txt").read_text()[-2000:] for rank in (0, 1)]
    assert [process.exitcode for process in both] == [expected] * 2, said
    return [] if killed else [json.loads((told / f"errors{rank}.json").read_text()) for rank in (0, 1)]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """What two processes have trained, one training after the other, and what they could not."""
    made_in = tmp_path_factory.mktemp("processes")
    records(made_in)
    (made_in / "half.png").write_bytes((made_in / "red.png").read_bytes()[:60])
    bad = {"id": "b", "prompt": "p", "response": "r", "image": "half.png"}
    (made_in / "bad.jsonl").write_text("".join(json.dumps(bad | {"id": str(n)}) + "\n" for n in range(9)))
    (made_in / "two" / "foreign").mkdir(parents=True)
    (made_in / "two" / "foreign" / "notes.txt").write_text("mine")
    configs = {name: config_of(made_in, name) for name in [*RUNS, "random"]}
    configs["picture"] = config_of(made_in, "picture", tasks={"bad": {"file": str(made_in / "bad.jsonl")}})
    configs["foreign"] = config_of(made_in, "foreign")
    configs["batch"] = config_of(made_in, "batch", training={"micro_batch_size": 8})
    configs["again"] = config_of(made_in, "lora-task")
    errors = run_two(configs, made_in)
    return made_in, errors


def weights(path):
    return load_file(path / "adapter_model.safetensors")


def record(path):
    return json.loads((path / "training.json").read_text())


def test_the_processes_have_unlike_numbers_of_supervised_tokens(folder):
    config = config_of(folder[0], "lora-length")
    collator = collating(mini.load_base()[1])
    examples = gather(config.tasks, collator, 0, False, lambda *_: None)
    assert examples.mixed
    order = list(Epochs(examples, "length", 8, 0))
    counts = torch.tensor([collator.encode(examples[place]).supervised for place in order]).reshape(-1, 2, 2, 2)
    ours, theirs = counts.sum(dim=(1, 3)).T  # [steps, micro batches, processes, examples]
    assert (ours != theirs).all()


@pytest.mark.parametrize("name", RUNS)
def test_two_processes_train_as_one_does(folder, tmp_path, name):
    alone = run.train(config_of(folder[0], name, tmp_path / "one", training={"micro_batch_size": 8}))
    for path in alone:
        other = folder[0] / "two" / name / path.relative_to(tmp_path / "one")
        assert sorted(file.name for file in other.iterdir()) == sorted(file.name for file in path.iterdir())
        one, two = record(path), record(other)
        assert one["steps"] == two["steps"] and one["examples"] == two["examples"]
        assert_close(torch.tensor(two["losses"]), torch.tensor(one["losses"]), rtol=1e-4, atol=1e-5)
        for tensor, expected in zip(weights(other).values(), weights(path).values(), strict=True):
            assert_close(tensor, expected, rtol=1e-3, atol=2e-4)


def test_what_one_process_finds_ends_both_with_the_same_words(folder):
    ours, theirs = folder[1]
    assert ours == theirs and list(ours) == ["picture", "foreign", "batch"]
    kind, message = ours["picture"]
    assert kind == "DataError" and message.startswith("9 records cannot be used; correct or remove these:\n")
    assert "half.png" in message
    assert ours["foreign"] == [
        "CheckpointError",
        f"{folder[0]}/two/foreign exists, but is not a training; choose another --out",
    ]
    assert ours["batch"] == [
        "ConfigError",
        "training.batch_size 8 is not a multiple of micro_batch_size 8 x 2 processes; choose one that is, or another "
        "training.micro_batch_size",
    ]
    assert not (folder[0] / "two" / "batch").exists()


def test_two_processes_go_on_where_both_were_killed(folder, tmp_path):
    configs = {"random": config_of(folder[0], "random", tmp_path / "out")}
    run_two(configs, tmp_path, killed=True)
    checkpoint = tmp_path / "out" / "checkpoints" / "checkpoint-4"
    assert {"rng_state_0.pth", "rng_state_1.pth"} <= {file.name for file in checkpoint.iterdir()}
    draws = [torch.load(checkpoint / f"rng_state_{rank}.pth", weights_only=False)["cpu"] for rank in (0, 1)]
    assert not torch.equal(*draws)  # factors are drawn apart
    assert run_two(configs, tmp_path) == [{}, {}]
    one, two = weights(tmp_path / "out"), weights(folder[0] / "two" / "random")
    assert all(torch.equal(one[name], two[name]) for name in two)
    assert record(tmp_path / "out")["finished"] and Path(tmp_path / "out" / "README.md").exists()
