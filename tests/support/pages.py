"""A report's page in a browser: its controls set, its matrices read, its numbers and colours written again."""

import re

SETTINGS = ("metric", "pairs", "reduce", "layers", "modules", "side")
OPTIONS = {
    "interference": "interference I",
    "delta": "Delta, fall of the loss",
    "cosine": "gradient cosine",
    "conflict_rate": "conflict rate",
    "both": "A and B",
}


def number(value, signed=True, coarse=True):
    """A number as the page must print it, written again in another language."""
    if value is None:
        return "–"
    size = abs(value)
    plain = f"{size:.2f}" if coarse or size == 0 or 0.095 <= size < 1000 else f"{size:.2g}"
    if "." in plain and not coarse and size < 0.095 and size:  # two digits, as toPrecision(2) keeps a last 0
        decimals = 1 - int(f"{size:e}".split("e")[1])
        plain = f"{size:.{max(decimals, 0)}f}"
    return ("−" if value < 0 else "+" if signed and value > 0 else "") + plain


def words_of(field, value):
    if field in ("layers", "modules") and value == "all":
        return f"all {field}"
    return f"layer {value}" if field == "layers" else OPTIONS.get(value, value)


def choose(page, field, words):
    control = page.locator(f"#controls [data-field='{field}'] select")
    if control.is_disabled():  # as there is nothing else to choose
        assert control.locator("option").all_text_contents() == [words]
    else:
        control.select_option(label=words, timeout=20_000)


def choose_cell(page, **wanted):
    """Sets the controls in their order."""
    for field in SETTINGS:
        if wanted.get(field) is not None:
            choose(page, field, words_of(field, wanted[field]))


def shown(page, matrix=0):
    """[value, interval or None, verdict] of every cell, row by row."""
    return (
        page.locator(".matrix")
        .nth(matrix)
        .evaluate(
            """table => [...table.querySelectorAll("td[data-row]")].map(cell =>
            ["value", "interval", "verdict"].map(name => cell.querySelector("." + name)?.textContent ?? null))"""
        )
    )


def show_runs(page, *labels):
    """Ticks the boxes of these runs and of no other."""
    boxes = page.locator("#controls .runs label")
    names = boxes.all_text_contents()
    for label in [*labels, *(name for name in names if name not in labels)]:  # one stays ticked all along
        boxes.nth(names.index(label)).locator("input").set_checked(label in labels)


def rgb(text):
    """Red, green and blue from 0 to 1 of a computed colour, as browsers write it."""
    numbers = [float(part) for part in re.findall(r"[\d.]+", text)]
    return numbers[:3] if text.startswith("color(srgb") else [part / 255 for part in numbers[:3]]


def contrast(one, other):
    """The contrast of two computed colours, from 1 to 21 (WCAG 2)."""

    def luminance(text):
        red, green, blue = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in rgb(text)]
        return 0.2126 * red + 0.7152 * green + 0.0722 * blue

    dark, light = sorted([luminance(one), luminance(other)])
    return (light + 0.05) / (dark + 0.05)
