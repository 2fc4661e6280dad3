"""Changes between a kill and the continuation: the result is of one model, or a sentence names the change."""

import json
import random
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from safetensors.numpy import load_file, save_file

from tests.attacks.commands import call, cut_short
from tests.attacks.counts import Counts
from tests.attacks.places import COMMANDS, Job, make
from tests.support.killing import files

COUNT = 1
"""Rounds over all changes and commands."""
NAMED = (" and is now ", " has changed")
"""Words of sentences that name a change."""
Values = dict[str, Any]
Change = Callable[[Path, Values, random.Random], object]


@dataclass(frozen=True)
class Kind:
    """A change.

    Attributes:
        change: makes it, given the folder of the inputs, the configuration of the command, and what it draws from.
        commands: that read what changes.
        inputs: on which it is made: "lora", "mixture" or "llava".
        parts: between which numbers of kept parts the command is killed.
        rounds: whether numbers may differ by rounding from those of one call with the change.
        before: what is changed before the command begins.
    """

    change: Change
    commands: tuple[str, ...] = tuple(COMMANDS)
    inputs: str = "lora"
    parts: tuple[int, int] = (1, 4)
    rounds: bool = False
    before: Change | None = None


MEASURED = ("compute", "factors", "evaluate")
"""Commands that read an adapter."""


def of_json(file: str, key: str, value: Any) -> Change:
    """Another value of a key of a JSON file."""

    def change(folder: Path, *_: Any) -> None:
        path = folder / file
        path.write_text(json.dumps({**json.loads(path.read_text()), key: value}))

    return change


def of_weights(file: str) -> Change:
    """Another number at a random place of a random tensor."""

    def change(folder: Path, _: Values, generator: random.Random) -> None:
        tensors = {name: tensor.copy() for name, tensor in load_file(folder / file).items()}
        tensor = tensors[generator.choice(sorted(tensors))].reshape(-1)
        tensor[generator.randrange(tensor.size)] += 0.5
        save_file(tensors, folder / file, {"format": "pt"})

    return change


def of_all_weights(file: str) -> Change:
    """Every number negated: another model altogether."""

    def change(folder: Path, *_: Any) -> None:
        tensors = load_file(folder / file)
        save_file({name: -tensor for name, tensor in tensors.items()}, folder / file, {"format": "pt"})

    return change


def of_settings(**sections: Values) -> Change:
    """Other settings of the command."""

    def change(_: Path, values: Values, *__: Any) -> None:
        for name, own in sections.items():
            values[name] = {**values.get(name, {}), **own}

    return change


def of_tasks(**keys: Any) -> Change:
    """Other keys of every task."""

    def change(_: Path, values: Values, *__: Any) -> None:
        values["tasks"] = {name: {**own, **keys} for name, own in values["tasks"].items()}

    return change


def of_line(folder: Path, _: Values, generator: random.Random) -> None:
    """Another answer in one line of the data."""
    path = folder / "red.jsonl"
    lines = path.read_text().splitlines()
    at = generator.randrange(len(lines))
    lines[at] = json.dumps({**json.loads(lines[at]), "prompt": "w3 w5 w7", "response": "w11 w13"})
    path.write_text("\n".join(lines) + "\n")


def of_picture(folder: Path, _: Values, generator: random.Random) -> None:
    """Another picture under the same name."""
    Image.new("RGB", (20, 18), (9, 200, 70)).save(folder / f"red-{generator.randrange(8)}.png")


def of_tokenizer(folder: Path, *_: Any) -> None:
    """Two words that exchange their numbers."""
    path = folder / "base" / "tokenizer.json"
    whole = json.loads(path.read_text())
    words = whole["model"]["vocab"]
    for one, other in zip(range(0, 40, 2), range(1, 40, 2), strict=True):
        words[f"w{one}"], words[f"w{other}"] = words[f"w{other}"], words[f"w{one}"]
    path.write_text(json.dumps(whole))


def of_template(folder: Path, *_: Any) -> None:
    """Another chat template."""
    text = "{% for m in messages %}{{ m['role'] + ': ' + m['content'] + '</s>\n' }}{% endfor %}"
    (folder / "base" / "chat_template.jinja").write_text(text)


def of_template_file(text: str) -> Change:
    """A template file that the configuration names, with this text; before it was the same file with another."""

    def change(folder: Path, values: Values, _: random.Random) -> None:
        file = folder / "named.jinja"
        file.write_text(
            f"{{% for m in messages %}}{{{{ m['role'] + '{text} ' + m['content'] + '</s>' }}}}{{% endfor %}}"
        )
        values["model"] = {**values["model"], "chat_template": str(file)}

    return change


ADAPTER, BASE = "adapter/adapter_config.json", "base/config.json"


def of_pooling(folder: Path, values: Values, _: random.Random) -> None:
    """A mixture whose routers would look at padding, and whose answers depend on what they choose, in batches."""
    for key, value in (("pooling", "all"), ("lora_alpha", 64)):
        of_json(ADAPTER, key, value)(folder)
    values["generation"] = {**values["generation"], "batch_size": 5}


def of_judge(folder: Path, values: Values, _: random.Random) -> None:
    """A judge of all answers, in a folder of its own."""
    shutil.copytree(folder / "base", folder / "judge")
    values["judge"] = {"model": str(folder / "judge"), "by": "generation", "device": "cpu", "batch_size": 1}
    of_tasks(score="judge")(folder, values)


KINDS = {
    "lora_alpha": Kind(of_json(ADAPTER, "lora_alpha", 16), MEASURED),
    "use_rslora": Kind(of_json(ADAPTER, "use_rslora", True), MEASURED),
    "pooling": Kind(of_json(ADAPTER, "pooling", "all"), MEASURED, "mixture"),
    "cfs_form": Kind(of_json(ADAPTER, "cfs_form", "official"), MEASURED, "mixture"),
    "adapter weights": Kind(of_weights("adapter/adapter_model.safetensors"), MEASURED),
    "rms_norm_eps": Kind(of_json(BASE, "rms_norm_eps", 0.1)),
    "hidden_act": Kind(of_json(BASE, "hidden_act", "gelu")),
    "base weights": Kind(of_weights("base/model.safetensors")),
    "base weights of a mixture": Kind(of_weights("base/model.safetensors"), inputs="mixture"),
    "tokenizer": Kind(of_tokenizer),
    "chat template": Kind(of_template),
    "template file": Kind(of_template_file(":"), before=of_template_file(" w9 w8")),
    "generation config": Kind(of_json("base/generation_config.json", "repetition_penalty", 30.0), ("evaluate",)),
    "a line of the data": Kind(of_line),
    "a picture": Kind(of_picture, inputs="llava"),
    "size of pictures": Kind(of_json("base/processor_config.json", "num_additional_image_tokens", 1), inputs="llava"),
    "dtype": Kind(of_settings(model={"dtype": "bfloat16"})),
    "attention": Kind(of_settings(model={"attention": "eager"}), rounds=True),
    "what the loss is on": Kind(of_tasks(loss_on="everything"), ("compute", "train")),
    "seed": Kind(of_settings(probe={"seed": 1}), ("compute", "factors")),
    "seed of a training": Kind(of_settings(training={"seed": 1}), ("train",)),
    "batch size": Kind(of_settings(probe={"batch_size": 3}), ("compute", "factors"), rounds=True),
    "batch size of an evaluation": Kind(of_settings(generation={"batch_size": 3}), ("evaluate",), rounds=True),
    "batch size of an evaluation of a mixture": Kind(
        of_settings(generation={"batch_size": 1}),
        ("evaluate",),
        "mixture",
        rounds=True,
        before=of_pooling,
    ),
    "batch size of a training": Kind(of_settings(training={"batch_size": 2}), ("train",)),
    "micro batch size": Kind(
        of_settings(training={"micro_batch_size": 2}),
        ("train",),
        rounds=True,
        before=of_settings(adapter={"dropout": 0}),
    ),
    "micro batch size of a mixture": Kind(
        of_settings(training={"micro_batch_size": 2}),
        ("train",),
        "mixture",
        rounds=True,
        before=of_settings(adapter={"dropout": 0}, mixlora={"pooling": "all"}),
    ),
    "judge": Kind(of_all_weights("judge/model.safetensors"), ("evaluate",), parts=(17, 24), before=of_judge),
    "alpha": Kind(of_settings(lora={"alpha": 32}), ("train",)),
    "learning rate": Kind(of_settings(training={"learning_rate": 1e-3}), ("train",)),
    "pooling of a training": Kind(of_settings(mixlora={"pooling": "all"}), ("train",), "mixture"),
    "max_new_tokens": Kind(of_settings(generation={"max_new_tokens": 2}), ("evaluate",)),
    "layers": Kind(of_settings(probe={"layers": [0, 2]}), ("compute", "factors")),
}


def attack(
    folder: Path, generator: random.Random, count: int, kinds: Mapping[str, Kind] = KINDS, share: float = 1.0
) -> Counts:
    """Kill each command, make each change, and continue.

    Args:
        folder: where to work.
        generator: of what is drawn.
        count: rounds.
        kinds: the changes.
        share: of the pairs of a change and a command that are tried, drawn.
    """
    found = Counts()
    pairs = [(name, command) for name, kind in kinds.items() for command in kind.commands]
    for round_ in range(count):
        for name, command in sorted(generator.sample(pairs, max(1, round(share * len(pairs))))):
            place = folder / f"{round_} {command} {name}"
            _try(place, name, kinds[name], command, generator, found)
            shutil.rmtree(place)
    return found


def _try(place: Path, name: str, kind: Kind, command: str, generator: random.Random, found: Counts) -> None:
    values = make(place / "inputs", kind.inputs)[command]
    if kind.before is not None:
        kind.before(place / "inputs", values, generator)
    job = Job(command, values, place / "cut" / "out")
    if not cut_short(job, generator.randint(*kind.parts)):
        found.add("tracebacks", f"{command}, {name}: it could not be killed between its parts")
        return
    found.add("tried")
    kind.change(place / "inputs", values, generator)
    kept = _kept(job.out)
    ended = call(job)
    if ended.code == 0:
        fresh = job.elsewhere(place / "whole" / "out")
        undisturbed = call(fresh)
        assert undisturbed.code == 0, (command, name, undisturbed.short())
        same = _close(job, fresh) if kind.rounds else job.result() == fresh.result()
        found.add("expected" if same else "wrong", f"{command}, {name}: {_differing(job, fresh)}")
    elif ended.code == 2 and any(words in ended.sentence for words in NAMED):
        found.add("refused" if _kept(job.out) == kept else "lost", f"{command}, {name}: {ended.short()}")
    else:
        found.add("tracebacks", f"{command}, {name}: {ended.short()}")


def _kept(out: Path) -> dict[str, bytes]:
    """What is measured, answered or trained so far."""
    names = ("part-", "checkpoint", "predictions")
    return {name: data for name, data in files(out.parent).items() if any(part in name for part in names)}


def _close(job: Job, fresh: Job) -> bool:
    """Whether tensors of two results differ by rounding alone, and texts not at all."""
    for file in (*fresh.out.rglob("*.safetensors"), *fresh.out.glob("predictions/*")):
        other = job.out / file.relative_to(fresh.out)
        if file.suffix != ".safetensors":
            if other.read_bytes() != file.read_bytes():
                return False
            continue
        one, two = load_file(other), load_file(file)
        if one.keys() != two.keys() or not all(_near(one[name], two[name]) for name in one):
            return False
    return True


def _near(one: np.ndarray, two: np.ndarray) -> bool:
    return one.shape == two.shape and np.allclose(one, two, rtol=1e-3, atol=1e-4 * np.abs(two).max(initial=0))


def _differing(job: Job, fresh: Job) -> list[str]:
    one, other = job.result(), fresh.result()
    return sorted(name for name in {*one, *other} if one.get(name) != other.get(name))
