"""Small evaluations of the mini base: adapters that answer differently, tasks, directories."""

import json
import shutil

import pytest
import torch
from peft import LoraConfig, get_peft_model

from mixlora import MixLoraConfig
from mixlora.common.files import file_name
from mixlora.common.sealed import checksum
from mixlora.data import mini
from mixlora.data.examples import Example, Turn
from mixlora.evaluation import config, results
from mixlora.evaluation.lines import write_lines
from mixlora.evaluation.run import evaluate
from tests.support.adapted import perturb
from tests.support.records import save_picture

TEMPLATE = "note: chat template: the base's (mini)\n"
"""What the command says first of the mini base."""
TARGETS = r".*language_model.*\.(q|k|v|o|gate|up|down)_proj"
FOLLOW = [("one", "two"), ("two", "three"), ("three", "four"), ("four", "five"), ("five", "six"), ("six", "seven")]


def adapted(kind, seed=1, **options):
    """The mini base with a LoRA or MixLoRA that changes what it says."""
    made = {
        "lora": lambda: LoraConfig(r=4, lora_alpha=8, target_modules=TARGETS),
        "mixlora": lambda: MixLoraConfig(r=2, num_factors=4, target_modules=TARGETS, **options),
    }[kind]()
    torch.manual_seed(seed)
    model = get_peft_model(mini.load_base()[0], made).eval()
    perturb(model, seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_B." in name:
                parameter.normal_(std=0.3)
    return model


def saved(path, kind="lora", seed=1, **options):
    """The same on disk."""
    adapted(kind, seed, **options).save_pretrained(path)
    return path


def follow(count=6):
    """Questions without a picture."""
    return [
        Example(
            f"follow-{one}", "follow", (Turn("user", f"Which number follows {one}?"), Turn("assistant", two)), (), one
        )
        for one, two in FOLLOW[:count]
    ]


def follow_file(path, pairs=FOLLOW, **more):
    """The same as a file of records."""
    rows = [{"unique_id": one, "prompt": f"Which number follows {one}?", "target": two, **more} for one, two in pairs]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def mme_folder(root, subtasks=("existence", "count"), pictures=2):
    """MME's folder with drawn pictures; of each the first answer is Yes and the second No."""
    for name in subtasks:
        for number in range(pictures):
            save_picture(root / name / f"{number}.png")
            (root / name / f"{number}.txt").write_text("Is it red?\tYes\nIs it a circle?\tNo\n")
    return root


def values(out, tasks=None, **sections):
    """Nested values of an evaluation of two tasks with pictures and one without."""
    usual = {
        "model": {"base": "mini", "device": "cpu"},
        "tasks": tasks,
        "generation": {"batch_size": 4, "max_new_tokens": 6},
        "draws": 100,
        "out": str(out),
    }
    return usual | sections


def made(out, tasks, **sections):
    return config.load(None, (), values(out, tasks, **sections))


def ran(out, tasks, **sections):
    return evaluate(made(out, tasks, **sections))


def files(folder):
    """Every file of a directory, by its path, with its bytes."""
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def lines(path):
    return [json.loads(line) for line in path.read_text(encoding="utf-8").split("\n") if line]


def answer(folder, task, said):
    """Replace what the model is said to have answered."""
    path = folder / "predictions" / f"{task}.jsonl"
    put(path, [row | {"predict": text} for row, text in zip(lines(path), said, strict=True)])


def put(path, rows):
    """Write these records with correct checksums."""
    write_lines(path, rows)


def settle(folder):
    """Name the answers that are there in the results, as if these had been scored."""
    found = results.load(folder)
    found.meta["answers"] = {
        task: checksum((folder / "predictions" / f"{file_name(task)}.jsonl").read_bytes()) for task in found.tasks
    }
    found.save(folder)


def copied(folder, out):
    shutil.copytree(folder, out)
    return out


def refusal(kind, out, tasks, **sections):
    with pytest.raises(kind) as error:
        ran(out, tasks, **sections)
    return str(error.value)
