"""How the shipped base model was made; `python -m mixlora.pretraining.recipe --out DIR` repeats it in about an hour.

Stage zero (`sight`) teaches the vision tower to see; stage one (`speech`) teaches the projector and the language model
to talk about it. Both are seeded. The folder holds a whole model at all times: it is saved anew every few minutes.
"""

import argparse
import json
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import cached_property, lru_cache
from importlib.metadata import version
from pathlib import Path
from random import Random
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from mixlora.data.collation import Collator
from mixlora.data.examples import Example, Turn
from mixlora.data.mini import base_path
from mixlora.data.mini.pictures import Picture, Split
from mixlora.data.templates import llava_v1
from mixlora.evaluation.config import GenerationSection
from mixlora.evaluation.generation import Generator
from mixlora.evaluation.scoring.parsing import tidy
from mixlora.pretraining import architecture, diet, loop, sight, speech

if TYPE_CHECKING:
    from transformers import LlavaForConditionalGeneration, LlavaProcessor

RECORDED_STEPS = 8
"""The number of first losses of a stage that are recorded, for comparison."""


@dataclass(frozen=True)
class Stage:
    """A stage's schedule, its batch size, and the number of blocks of pictures that it cycles through."""

    schedule: loop.Schedule
    batch_size: int
    blocks: int


@dataclass(frozen=True)
class Recipe:
    """All numbers of the training. Pictures come in blocks, each with the whole mix of sources."""

    seed: int = 0
    block_size: int = 1000
    sight: Stage = Stage(loop.Schedule(3600, 2e-3, matrix_rate=1.2e-2, warmup=50, weight_decay=0.05), 64, 40)
    speech: Stage = Stage(loop.Schedule(1300, 2e-3, matrix_rate=8e-3, warmup=50, weight_decay=0.02), 32, 20)
    turns: int = 4


@dataclass(frozen=True)
class Block:
    """A block of pictures: pixels [pictures, 3, size, size] as bytes, and their facts."""

    pixels: Tensor
    facts: list[dict[str, str]]

    @cached_property
    def labels(self) -> Tensor:
        """The facts as numbers [pictures, facts]."""
        return sight.labels(self.facts)


@lru_cache(maxsize=64)
def block(split: Split, size: int, seed: int) -> Block:
    """The block of pictures of that seed."""
    shown = diet.pictures(split, size, seed)
    pixels = np.stack([np.asarray(picture.image).transpose(2, 0, 1) for picture in shown])
    return Block(torch.from_numpy(pixels), [dict(picture.facts) for picture in shown])


def normal(pixels: Tensor) -> Tensor:
    """Pixels, given as bytes, normalised as the processor does for the tower."""
    return (pixels.float() / 255 - architecture.PAPER) / architecture.CONTRAST


class Feeder:
    """The pictures of each step: block after block, in another order in each pass."""

    def __init__(self, recipe: Recipe, stage: Stage) -> None:
        self.recipe, self.stage = recipe, stage
        self.per_block = len(block("train", recipe.block_size, 0).facts) // stage.batch_size

    def at(self, step: int) -> tuple[int, list[int]]:
        """The number of a step's block, and the positions of the step's pictures in it."""
        turn, place = divmod(step, self.per_block)
        size = len(block("train", self.recipe.block_size, 0).facts)
        order = Random(f"order/{turn}").sample(range(size), size)
        width = self.stage.batch_size
        return turn % self.stage.blocks, order[place * width : (place + 1) * width]

    def block(self, number: int) -> Block:
        """The training block of that number."""
        return block("train", self.recipe.block_size, number)


def _matrices(part: torch.nn.Module) -> list[torch.nn.Parameter]:
    """The weights of linear layers inside transformer blocks, which Muon trains."""
    return [weight for name, weight in part.named_parameters() if weight.ndim == 2 and "layers." in name]


def _others(part: torch.nn.Module, but: list[torch.nn.Parameter]) -> list[torch.nn.Parameter]:
    taken = {id(parameter) for parameter in but}
    return [parameter for parameter in part.parameters() if id(parameter) not in taken]


def see(
    llava: "LlavaForConditionalGeneration",
    recipe: Recipe,
    report: loop.Report | None = None,
    stop_after: int | None = None,
) -> tuple[list[float], dict[str, float]]:
    """Train stage zero: losses (nats a picture), and the tower's accuracy on facts of held-out pictures."""
    torch.manual_seed(recipe.seed)
    heads = sight.Heads(architecture.WIDTH)
    tower = llava.model.vision_tower
    feeder, generator = Feeder(recipe, recipe.sight), torch.Generator().manual_seed(recipe.seed)

    def loss_at(step: int) -> Tensor:
        number, places = feeder.at(step)
        shown = feeder.block(number)
        pixels = sight.moved(normal(shown.pixels[places]), generator)
        return heads.loss(speech.patches(llava, pixels), shown.labels[places])

    matrices = _matrices(tower)
    rest = [*_others(tower, matrices), *heads.parameters()]
    losses = loop.optimise(rest, loss_at, recipe.sight.schedule, report, matrices, stop_after)
    unseen = block("heldout", 2000, 1)
    with torch.no_grad():
        seen = torch.cat([speech.patches(llava, part) for part in normal(unseen.pixels).split(250)])
    return losses, heads.accuracies(seen, unseen.labels)


def speak(
    llava: "LlavaForConditionalGeneration",
    processor: "LlavaProcessor",
    recipe: Recipe,
    report: loop.Report | None = None,
    stop_after: int | None = None,
) -> list[float]:
    """Train stage one: losses (nats per supervised token)."""
    torch.manual_seed(recipe.seed)
    scribe = speech.Scribe(processor, (architecture.SIZE // architecture.PATCH) ** 2)
    feeder = Feeder(recipe, recipe.speech)

    @lru_cache(maxsize=64)
    def seen(number: int) -> Tensor:
        with torch.no_grad():
            return torch.cat([speech.patches(llava, part) for part in normal(feeder.block(number).pixels).split(250)])

    def loss_at(step: int) -> Tensor:
        number, places = feeder.at(step)
        facts = feeder.block(number).facts
        rng = Random(f"speech/{recipe.seed}/{step}")
        lines = [scribe.line(diet.conversation(rng, facts[place], recipe.turns)) for place in places]
        return speech.answer_loss(llava, seen(number)[places], lines)

    learners = torch.nn.ModuleList([llava.model.multi_modal_projector, llava.model.language_model])
    matrices = _matrices(llava.model.language_model)
    return loop.optimise(_others(learners, matrices), loss_at, recipe.speech.schedule, report, matrices, stop_after)


def quiz(count: int, seed: int = 0) -> list[Example]:
    """Held-out pictures, each with one question of the base's own diet; an example's task is its picture's kind."""

    def example(picture: Picture) -> Example:
        question, answer = diet.conversation(Random(f"quiz/{picture.id}"), picture.facts, 1)[0]
        turns = (Turn("user", question, places=(0,)), Turn("assistant", answer))
        return Example(picture.id, diet.kind(picture.facts), turns, (picture.image,), f"mini/quiz/{picture.id}")

    return [example(picture) for picture in diet.pictures("heldout", count, seed)]


def accuracy(
    llava: "LlavaForConditionalGeneration", processor: "LlavaProcessor", examples: list[Example], batch_size: int = 64
) -> float:
    """The share of examples that the model answers exactly right with greedy decoding."""
    how = GenerationSection.model_validate({"batch_size": batch_size, "max_new_tokens": 12})
    generator = Generator(llava, Collator(processor, template=llava_v1(processor)), how)
    right = 0
    for batch in generator.batches(examples):
        answers = zip(batch, generator.answers(batch), strict=True)
        right += sum(tidy(said) == tidy(one.turns[-1].text) for one, said in answers)
    return right / len(examples)


def _reporter(stage: str, steps: int, save: Callable[[], None], every: int = 50, save_every: int = 400) -> loop.Report:
    started, smooth = time.monotonic(), 0.0

    def report(step: int, loss: float) -> None:
        nonlocal smooth
        smooth = loss if step == 1 else 0.95 * smooth + 0.05 * loss
        if step % every == 0:
            print(f"{stage} {step}/{steps} loss {smooth:.3f} {time.monotonic() - started:.0f} s", flush=True)
        if step % save_every == 0:
            save()

    return report


def make(out: Path, recipe: Recipe) -> None:
    """Train the base in the folder; a stage that is finished there is not repeated."""
    from transformers import LlavaForConditionalGeneration, LlavaProcessor

    notes = out / "recipe.json"
    if notes.exists():
        record = json.loads(notes.read_text())
        llava = LlavaForConditionalGeneration.from_pretrained(out, dtype="float32")
        processor = LlavaProcessor.from_pretrained(out)
    else:
        record = {}
        # The first losses depend on the order of the vocabulary, so the shipped one is used.
        words = LlavaProcessor.from_pretrained(base_path()).tokenizer
        llava, processor = architecture.newborn(words, recipe.seed), architecture.processor(words)
        processor.save_pretrained(out)

    def save(**stage: object) -> None:
        llava.save_pretrained(out)
        if stage:
            packages = {name: version(name) for name in ("torch", "transformers", "numpy", "pillow", "matplotlib")}
            record.update(
                recipe=asdict(recipe),
                versions=packages,
                parameters=llava.num_parameters(),
                pictures={
                    name: recipe.sight.blocks * int(recipe.block_size * share) for name, share in diet.MIX.items()
                },
                **stage,
            )
            notes.write_text(json.dumps(record, indent=1) + "\n")

    if "sight" not in record:
        losses, right = see(llava, recipe, _reporter("sight", recipe.sight.schedule.steps, save))
        save(sight={**_losses(losses), "heldout": right})
    losses = speak(llava, processor, recipe, _reporter("speech", recipe.speech.schedule.steps, save))
    save(speech={**_losses(losses), "heldout": _scores(llava, processor)})


def _losses(losses: list[float]) -> dict[str, object]:
    return {"first_losses": losses[:RECORDED_STEPS], "last_loss": sum(losses[-50:]) / len(losses[-50:])}


def _scores(llava: "LlavaForConditionalGeneration", processor: "LlavaProcessor") -> dict[str, dict[str, float]]:
    """The accuracy on the quiz for each kind of picture, with the number of questions."""
    asked = quiz(1000)
    kinds = {kind: [example for example in asked if example.task == kind] for kind in sorted(diet.QUESTIONS)}
    return {
        kind: {"count": len(some), "accuracy": accuracy(llava, processor, some)}
        for kind, some in {**kinds, "all": asked}.items()
    }


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="folder of the model, for example runs/mini-base")
    make(parser.parse_args().out, Recipe())


if __name__ == "__main__":
    main()
