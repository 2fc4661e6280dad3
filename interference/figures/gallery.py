"""Gallery: the paper's figures by name, from directories to files. What each name reads and which options it takes."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from interference import run
from interference.errors import ConfigError
from interference.factors import factors
from interference.figures import paper
from interference.figures.canvas import Picture, files
from mixlora.common.outputs import OutputFolder

KINDS = ("pdf", "svg", "png", "csv")
_SCOPE = ("metric", "layers", "modules", "side", "pairs", "reduce")


@dataclass(frozen=True)
class Plate:
    """A figure that has a name.

    Attributes:
        number: of the figure in the paper.
        least: directories that it needs.
        most: that it can draw; None for any number.
        reads: what is in the directories.
        options: that it takes, by their names on the command line.
        draw: the directories and the options given, to the figure.
    """

    number: int
    least: int
    most: int | None
    reads: str
    options: tuple[str, ...]
    draw: Callable[[Sequence[Path], dict[str, Any]], Picture]

    @property
    def needs(self) -> str:
        """How many directories of what."""
        words = {1: "one directory", 2: "two directories"}[self.least]
        return f"{words}{'' if self.most else ' or more'} {self.reads}"


def _blocks(paths: Sequence[Path], options: dict[str, Any]) -> Picture:
    return paper.blocks(run.load(paths[0]), **options)


def _conditional(paths: Sequence[Path], options: dict[str, Any]) -> Picture:
    return paper.conditional(paths, options.get("label"), options.get("unseen", ()))


def _selections(paths: Sequence[Path], options: dict[str, Any]) -> Picture:
    return paper.selections(factors.load(paths[0]), **options)


def _pairs(paths: Sequence[Path], options: dict[str, Any]) -> Picture:
    found = factors.load(paths[0])
    given = [_pair(text, found.selections.names) for text in options.pop("pair", ())]
    if not given:
        raise ConfigError("the figure 'pairs' draws pairs of tasks; give --pair SEEN=UNSEEN, once for each")
    return paper.pairs(found, given, **options)


def _methods(paths: Sequence[Path], options: dict[str, Any]) -> Picture:
    labels = options.pop("label", None) or _tails(paths)
    return paper.methods({label: run.load(path) for label, path in zip(labels, paths, strict=True)}, **options)


PLATES = {
    "blocks": Plate(2, 1, 1, "of a run", _SCOPE, _blocks),
    "conditional": Plate(4, 2, None, "that `mixlora evaluate` wrote", ("label", "unseen"), _conditional),
    "selections": Plate(5, 1, 1, "that `interference factors` wrote", ("unseen", "perplexity"), _selections),
    "pairs": Plate(6, 1, 1, "that `interference factors` wrote", ("pair", "perplexity"), _pairs),
    "methods": Plate(7, 2, 2, "of runs", (*_SCOPE, "label"), _methods),
}


def named(text: str) -> str:
    """The name of a figure that is given by its name or its number in the paper.

    Raises:
        ConfigError: if it is neither.
    """
    numbers = {str(plate.number): name for name, plate in PLATES.items()}
    name = numbers.get(text, text)
    if name not in PLATES:
        known = ", ".join(f"{name} ({number})" for number, name in numbers.items())
        raise ConfigError(f"there is no figure {text!r}; the names (and numbers in the paper) are {known}")
    return name


def draw(name: str, paths: Sequence[Path], options: Mapping[str, Any]) -> Picture:
    """A figure from what lies in directories.

    Args:
        name: of `PLATES`, or its number in the paper.
        paths: the directories.
        options: those given, by their names on the command line; None is not given.

    Raises:
        ConfigError: an unknown name, too few or too many directories, an option that the figure does not read, labels
            that are not one for each directory.
        InterferenceError: a directory holds something else, or an option does not fit it.
    """
    name = named(name)
    plate, given = PLATES[name], {key: value for key, value in options.items() if value is not None}
    if unread := [key for key in given if key not in plate.options]:
        takes = ", ".join(f"--{key}" for key in plate.options)
        raise ConfigError(f"the figure {name!r} does not read --{unread[0]}; it takes {takes}")
    if len(paths) < plate.least or len(paths) > (plate.most or len(paths)):
        was = "was" if len(paths) == 1 else "were"
        raise ConfigError(f"the figure {name!r} needs {plate.needs}, but {len(paths)} {was} given")
    _check_labels(given.get("label") or [], paths)
    return plate.draw(paths, given)


def write(name: str, paths: Sequence[Path], out: Path, options: Mapping[str, Any]) -> tuple[list[Path], list[str]]:
    """Draw a figure into NAME.pdf, .svg, .png and, with the data drawn, .csv; the paths, and what a reader must know.

    Files of these names that the command wrote before are replaced. Arguments and errors as in `draw`, and a RunError
    where `out` holds what it did not write.
    """
    folder = OutputFolder(out, "interference figure")
    picture = draw(name, paths, options)
    return folder.replace(files({named(name): picture}, KINDS), keep=True), picture.notes


def _check_labels(labels: Sequence[str], paths: Sequence[Path]) -> None:
    if labels and len(labels) != len(paths):
        raise ConfigError(f"--label is given {len(labels)} times for {len(paths)} inputs; give one for each, or none")
    if twice := next((label for place, label in enumerate(labels) if label in labels[:place]), None):
        raise ConfigError(f"--label {twice!r} is given twice; give each directory a label of its own")


def _pair(text: str, names: Sequence[str]) -> tuple[str, str]:
    """The two tasks of SEEN=UNSEEN, whose names may hold "=" themselves."""
    cuts = [(text[:place], text[place + 1 :]) for place, sign in enumerate(text) if sign == "="]
    whole = [cut for cut in cuts if all(cut)]
    if not whole:
        raise ConfigError(f"--pair {text!r} is not of the form SEEN=UNSEEN")
    return next((cut for cut in whole if set(cut) <= set(names)), whole[0])


def _tails(paths: Sequence[Path]) -> list[str]:
    """The shortest ends of the paths that tell them apart."""
    parts = [path.resolve().parts for path in paths]
    if twice := next((path for path, own in zip(paths, parts, strict=True) if parts.count(own) > 1), None):
        raise ConfigError(f"{twice} is given twice; give two directories, or each a --label of its own")
    for length in range(1, max(map(len, parts)) + 1):
        found = ["/".join(own[-length:]) for own in parts]
        if len(set(found)) == len(found):
            break
    return found
