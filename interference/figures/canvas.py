"""Canvas: what all figures share: a figure that a notebook shows and that carries its data, its files, its signs."""

import io
import textwrap
import unicodedata
import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any, Literal, cast

import matplotlib as mpl
import pandas as pd
from matplotlib import font_manager
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ft2font import FT2Font
from matplotlib.text import Text

from mixlora.common.errors import plain, unwritable
from mixlora.common.files import expanded
from mixlora.common.spreadsheets import frame_csv
from mixlora.common.writing import replace_files

COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")  # Okabe and Ito's, no yellow
SHAPES = ("o", "s", "^", "D", "v", "P", "X", "*", "<", ">")  # 10 shapes and 7 colours repeat together after 70
LETTER = 0.062  # inches that a letter of 8 points takes
LONGEST = 28  # characters of a name
DOTS = 150  # of a PNG file, an inch
PIXELS = 10**8  # of a PNG file; a larger figure has fewer dots an inch, as no viewer opens it else
_SETTINGS: Any = {"pdf.fonttype": 42, "svg.fonttype": "path", "svg.hashsalt": "interference"}
_MISSING = r"Glyph \d+ \(.*\) missing from"  # how matplotlib begins to say that a font lacks a sign
_METADATA = {"pdf": {"CreationDate": None}, "svg": {"Date": None}}  # so that the same data give the same bytes


class Picture(Figure):
    """A matplotlib Figure that a notebook displays by itself, without pyplot.

    Attributes:
        data: What is drawn, one row per cell or point, so that others can redraw it.
        notes: What a reader must know besides.
        caption: The lines below the panels.

    Args:
        size: Width and height in inches.
        layout: As of a matplotlib Figure.
    """

    def __init__(self, size: tuple[float, float], layout: Literal["constrained", "compressed"] = "constrained") -> None:
        super().__init__(figsize=size, layout=layout)
        FigureCanvasAgg(self)
        self.data = pd.DataFrame()
        self.notes: list[str] = []
        self.caption: list[str] = []

    def grid(self, rows: int, columns: int) -> list[Axes]:
        """Panels, row by row."""
        return list(self.subplots(rows, columns, squeeze=False).ravel())

    def explain(self, lines: Iterable[str]) -> None:
        """Write lines below the panels, in place of those before."""
        self.caption = list(lines)
        wrapped = (textwrap.fill(plain(line), int(self.get_figwidth() / LETTER)) for line in self.caption)
        self.supxlabel("\n".join(wrapped), fontsize=8, parse_math=False)

    def draw(self, renderer: Any) -> None:
        """Draw it, as every way of saving and showing does."""
        with _signs(self):
            super().draw(renderer)

    def get_tightbbox(self, *arguments: Any, **options: Any) -> Any:
        """What surrounds it, which notebooks ask before they draw."""
        with _signs(self):
            return super().get_tightbbox(*arguments, **options)

    def _repr_png_(self) -> bytes:
        """What a notebook shows."""
        return rendered(self, "png", self.dpi)


def rendered(figure: Figure, kind: str, dots: float = DOTS) -> bytes:
    """The bytes of a figure's file: the same for the same data.

    Fonts are embedded as TrueType in "pdf", glyphs are paths in "svg", so that no viewer needs a font.
    """
    width, height = figure.get_size_inches()
    dots = min(dots, (PIXELS / (width * height)) ** 0.5) if kind == "png" else dots
    with mpl.rc_context(_SETTINGS), _signs(figure):
        figure.savefig(file := io.BytesIO(), format=kind, dpi=dots, metadata=_METADATA.get(kind))
    return file.getvalue()


def save(figure: Figure, folder: Path, name: str, kinds: Sequence[str] = ("png", "svg")) -> list[Path]:
    """Write a figure under a name, replacing files of that name and no others, all or none.

    Args:
        figure: Any figure; of a `Picture` the kind "csv" is its data.
        folder: Made if need be.
        name: Of the files.
        kinds: Endings of the files: "png", "svg", "pdf", "csv".

    Returns:
        The paths of the files, in the order of `kinds`.

    Raises:
        RunError: If a file cannot be written.
        WriteError: If its disk is full.
    """
    made = {expanded(folder) / file: content for file, content in files({name: figure}, kinds).items()}
    try:
        replace_files(made)
    except OSError as error:
        raise unwritable(f"the figure cannot be written to {folder}", error, again="start again") from None
    return list(made)


def files(figures: Mapping[str, Figure], kinds: Sequence[str] = ("png", "svg")) -> dict[str, bytes]:
    """The files of figures: {"name.kind": content}.

    Args:
        figures: By name.
        kinds: As in `save`.

    Returns:
        {"name.kind": content}.
    """
    made = {}
    for name, figure in figures.items():
        engine = figure.get_layout_engine()
        for kind in kinds:
            made[f"{name}.{kind}"] = _content(figure, kind)
            if kind != "csv":
                figure.set_layout_engine("none")  # its panels have found their places
        figure.set_layout_engine(engine)
    return made


def _content(figure: Figure, kind: str) -> bytes:
    if kind == "csv" and isinstance(figure, Picture):
        return frame_csv(figure.data)
    return rendered(figure, kind)


def room(names: Iterable[str]) -> float:
    """The width that the longest name takes beside a panel, in inches; turned by 40 degrees about two thirds of it."""
    return 0.06 * max((len(short(name)) for name in names), default=0)


def short(name: str) -> str:
    """A name, its middle left out where it would push the drawing off the figure."""
    name = plain(name)
    return name if len(name) <= LONGEST else f"{name[: LONGEST - 11]}…{name[-10:]}"


@contextmanager
def alone(axes: Axes) -> Iterator[None]:
    """The other panels out of the way: seaborn draws the whole figure to see whether labels overlap.

    Args:
        axes: The panel that is drawn inside.

    Yields:
        Nothing.
    """
    figure = cast(Figure, axes.get_figure(root=True))
    engine, others = figure.get_layout_engine(), [other for other in figure.axes if other is not axes]
    shown = [other for other in others if other.get_visible()]
    figure.set_layout_engine("none")
    for other in shown:
        other.set_visible(False)
    try:
        yield
    finally:
        for other in shown:
            other.set_visible(True)
        figure.set_layout_engine(engine)


@contextmanager
def _signs(figure: Figure) -> Iterator[None]:
    """Draw within this: a sign that a text's font lacks comes from an installed font, or is a box without a warning."""
    for text in figure.findobj(Text):
        assert isinstance(text, Text)
        if not (shown := text.get_text()).isascii():
            own = tuple(text.get_fontfamily())
            others = {family_with(sign) for sign in shown if not any(_has(_file(one), sign) for one in own)} - {""}
            if others:
                text.set_fontfamily([*own, *sorted(others)])
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=_MISSING)
        yield


@cache
def family_with(sign: str) -> str:
    """The name of an installed font that draws a sign, upright and of normal weight if possible; "" without one."""
    fonts = font_manager.fontManager.ttflist
    for font in sorted(fonts, key=lambda one: (one.style != "normal", one.weight != 400, one.name)):
        if "LastResort" not in font.fname and _has(font.fname, sign):
            return str(font.name)
    return ""


@cache
def _file(family: str) -> str:
    return str(font_manager.findfont(font_manager.FontProperties(family=[family])))


@cache
def _has(file: str, sign: str) -> bool:
    """Whether a font has a sign and an outline of it; those of bitmaps and of colours alone have none."""
    try:
        font = FT2Font(file)  # not kept: each holds its file open
        if not font.get_char_index(ord(sign)):
            return False
        return unicodedata.category(sign)[0] in "ZCM" or font.load_char(ord(sign)).width > 0
    except (OSError, RuntimeError, ValueError):  # a font that FreeType cannot read, or that is gone
        return False
