"""ReportData as one HTML file: everything inlined, nothing fetched, nothing computed.

The reader's side lies beside this file: `template.html`; `style.css`, which has all colours, each for light and dark;
and in `SCRIPTS` numbers and words, charts, the matrix, what is chosen, copies, and the sections of the page. Charts are
drawn by Vega-Lite, whose JavaScript vl-convert brings.
"""

from __future__ import annotations

import base64
import hashlib
import json
import re
import subprocess
import sys
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from mixlora.common.errors import ResourceError, reason
from mixlora.common.system import scarce

FOLDER = Path(__file__).parent
SNIPPET = "window.vegaEmbed = vegaEmbed;"
THEME = "theme.js"  # before anything is painted
SCRIPTS = (  # one program, in this order
    "marks.js", "charts.js", "matrix.js", "state.js", "svg.js", "copying.js", "layers.js", "answers.js", "contents.js",
    "page.js",
)  # fmt: skip
# Controls other than tab and line feed, lone surrogates, and marks that turn the direction of the text behind them.
UNPRINTABLE = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\ud800-\udfff\u202a-\u202e\u2066-\u2069]")
ESCAPES = {"<": "\\u003c", ">": "\\u003e", "&": "\\u0026", "\u2028": "\\u2028", "\u2029": "\\u2029"}


def render(data: Mapping[str, Any] | str) -> str:
    """The HTML page of a report, as text.

    Args:
        data: ReportData as plain dicts and lists, or its JSON.

    Raises:
        ValueError: if a number is not finite (what is not known is None) or the text is not JSON.
    """
    report = _printable(json.loads(data) if isinstance(data, str) else data)
    scripts = [_embeddable(_bundle()), _embeddable("\n".join(_read(name) for name in SCRIPTS))]
    style, theme = _read("style.css"), _embeddable(_read(THEME))
    environment = Environment(loader=FileSystemLoader(FOLDER), autoescape=True, undefined=StrictUndefined)
    environment.filters |= {"breakable": _breakable, "shown": _shown}
    return environment.get_template("template.html").render(
        report=report,
        data=Markup(_json(report)),
        policy=_policy(style, [theme, *scripts]),
        scripts=[Markup(script) for script in scripts],
        style=Markup(style),
        theme=Markup(theme),
    )


def _policy(style: str, scripts: list[str]) -> str:
    """The content security policy: this page's own style and scripts by their hash, data: images, nothing else.

    Vega evaluates its expressions with an interpreter (`ast` in charts.js), so no 'unsafe-eval' is needed.
    """
    return "; ".join([
        "default-src 'none'",
        f"script-src {' '.join(map(_hash, scripts))}",
        f"style-src {_hash(style)}",
        "img-src data:",
        "base-uri 'none'",
        "form-action 'none'",
    ])  # fmt: skip


def _hash(text: str) -> str:
    return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"


def _json(report: Any) -> str:
    """JSON that stays text within a <script> element, whatever the names hold."""
    text = json.dumps(report, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    return "".join(ESCAPES.get(c, c) for c in text) if re.search("[<>&\u2028\u2029]", text) else text


def _printable(value: Any) -> Any:
    """The same value, with a replacement character for what cannot be seen or would reorder the text around it."""
    if isinstance(value, str):
        return UNPRINTABLE.sub("\N{REPLACEMENT CHARACTER}", value)
    if isinstance(value, Mapping):
        return {_printable(key): _printable(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_printable(item) for item in value]
    return value


def _breakable(name: str) -> Markup:
    """A task's name, escaped, which may break behind the marks that join its words, as `nameOf` of matrix.js does."""
    return Markup("<wbr>").join(re.split(r"(?<=[_\-./])", name))


def _shown(value: float | None) -> str:
    """A number of two decimals, as `number` of marks.js writes it without a plus; a dash for what is not known."""
    return "–" if value is None else f"{value:.2f}".replace("-", "\N{MINUS SIGN}")


def _embeddable(script: str) -> str:
    """The script such that no string or pattern within it ends its element."""
    return script.replace("\r\n", "\n").replace("</script", "<\\/script")


def _read(name: str) -> str:
    return (FOLDER / name).read_text(encoding="utf-8")


@cache
def _bundle() -> str:
    """Vega, Vega-Lite and Vega-Embed as one script, which sets window.vegaEmbed; takes seconds to put together.

    Another process does that: the library ends its process where memory or open files run out.

    Raises:
        ResourceError: if it cannot be done.
    """
    code = f"import sys, vl_convert; sys.stdout.buffer.write(vl_convert.javascript_bundle({SNIPPET!r}).encode())"
    call = [sys.executable, "-c", code]
    try:  # in a folder of our own: in the user's, a file of the library's name would be imported
        done = subprocess.run(call, capture_output=True, check=False, stdin=subprocess.DEVNULL, cwd=FOLDER)
    except OSError as error:
        raise scarce(error) or ResourceError(f"the page's script cannot be put together: {reason(error)}") from None
    if done.returncode:
        said = done.stderr.decode(errors="replace").strip()
        last = said.rpartition("\n")[2]
        short = scarce(MemoryError(last) if done.returncode < 0 else RuntimeError(said))
        raise short or ResourceError(f"the page's script cannot be put together: {last}")
    return done.stdout.decode()
