"""What strangers' files may hold: damaged bytes, JSON of any shape, names that steer; and how a call may end."""

import json
import math
import os
import secrets
import warnings
from pathlib import Path

from hypothesis import HealthCheck, seed, settings
from hypothesis import strategies as st

from interference.errors import InterferenceError
from mixlora.common.errors import MixLoraError, plain

TIMES = os.environ.get("FUZZ_TIMES")
"""How many times as many examples a long run tries; None in an ordinary one."""
SEED = int(os.environ.setdefault("FUZZ_SEED", str(secrets.randbelow(2**32)))) if TIMES else None
"""What a long run draws its examples from, in all of its processes."""


def fuzz(examples: int = 150):
    """What makes a fuzz test: as many examples, the same each time; or FUZZ_TIMES times as many, from FUZZ_SEED."""
    bounds = settings(
        max_examples=examples * int(TIMES or 1),
        derandomize=TIMES is None,
        database=None,
        deadline=None,
        suppress_health_check=list(HealthCheck),
    )
    return lambda test: bounds(test if SEED is None else seed(SEED)(test))


NASTY = (
    *("", " ", ".", "..", "../x", "/etc/hostname", "a/b", "a\\b", "~", "x" * 500, "\0", "\x1b[2J\x1b[31mred", "\x9b1m"),
    *(
        "two\nlines",
        "\r",
        "\u202eevil",
        "\u2028",
        "\ud800",
        "é",
        "None",
        "nan",
        "1e999",
        "-1",
        "0",
        "<script>",
        "{{7*7}}",
    ),
    *("{task}", "%s", "*", "=", "<<", "cuda:99", "mini", "yes", "2020-99-99", "9" * 5000, "null", "[" * 300),
)
NUMBERS = (0, -1, 1, 2**31, 2**63, 2**64, -(2**63) - 1, 10**400, 0.5, -0.0, math.inf, -math.inf, math.nan, 1e308)


def nested(depth: int) -> list:
    """Lists in lists."""
    found: list = []
    for _ in range(depth):
        found = [found]
    return found


scalars = (
    st.none()
    | st.booleans()
    | st.sampled_from(NUMBERS)
    | st.sampled_from(NASTY)
    | st.integers(-5, 70)
    | st.text(max_size=8)
)
values = st.recursive(
    scalars,
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(NASTY) | st.text(max_size=5), inner, max_size=3)
    ),
    max_leaves=6,
) | st.sampled_from([70, 300]).map(nested)


@st.composite
def changed(draw, whole):
    """A JSON value in which up to three places hold something else, are gone, or are there under another name."""
    found = json.loads(json.dumps(whole))
    for _ in range(draw(st.integers(1, 3))):
        at = found
        while True:
            keys = list(at) if isinstance(at, dict) else list(range(len(at)))
            if not keys:
                break
            key = draw(st.sampled_from(keys))
            if isinstance(at[key], dict | list) and at[key] and draw(st.integers(0, 3)):
                at = at[key]
                continue
            deed = draw(st.sampled_from(["replace", "replace", "replace", "remove", "add"]))
            if deed == "replace":
                at[key] = draw(values)
            elif deed == "remove":
                del at[key]
            elif isinstance(at, dict):
                at[draw(st.sampled_from(NASTY))] = draw(values)
            else:
                at.append(draw(values))
            break
    return found


@st.composite
def damaged(draw, data: bytes):
    """Bytes with up to four bits turned over, parts cut out, doubled, swapped or overwritten, or the end missing."""
    found = bytearray(data)
    for _ in range(draw(st.integers(1, 4))):
        at, end = sorted((draw(st.integers(0, len(found))), draw(st.integers(0, len(found)))))
        end = min(end, at + draw(st.sampled_from([1, 8, 100, 10**6])))
        deed = draw(
            st.sampled_from(["flip", "flip", "cut", "truncate", "double", "overwrite", "insert", "zero", "ones"])
        )
        if deed == "flip" and at < len(found):
            found[at] ^= 1 << draw(st.integers(0, 7))
        elif deed == "cut":
            del found[at:end]
        elif deed == "truncate":
            del found[at:]
        elif deed == "double":
            found[at:at] = found[at:end]
        elif deed == "overwrite":
            new = draw(st.binary(max_size=8))
            found[at : at + len(new)] = new
        elif deed == "insert":
            found[at:at] = draw(
                st.binary(max_size=8) | st.sampled_from(NASTY).map(lambda text: text.encode("utf-8", "replace"))
            )
        else:
            found[at : at + 4] = (b"\0" if deed == "zero" else b"\xff") * 4
    return bytes(found)


def written(value) -> bytes:
    """A value as JSON, with what Python's writer takes and other readers may not: NaN, halves of characters."""
    try:
        return json.dumps(value).encode("utf-8")
    except ValueError:  # an int of too many digits to be written
        return b'{"n": ' + b"9" * 5000 + b"}"


def attempt(call) -> str | None:
    """What a refusal says, or None of a success. Anything else is raised, and no warning may be given.

    Whatever is said must be presentable in a terminal.
    """
    with warnings.catch_warnings(record=True) as warned:
        warnings.simplefilter("always")
        try:
            call()
            told = None
        except (InterferenceError, MixLoraError) as error:
            told = str(error)
            assert told.strip() and len(told) < 4000, told[:1000]
            plain(told).encode("utf-8")
    ours = [found for found in warned if "PIL" not in Path(found.filename).parts]  # Pillow's: once for each kind
    assert not ours, [str(found.message) for found in ours]
    return told


def put(folder: Path, files: dict[str, bytes]) -> Path:
    """A folder that holds exactly these files."""
    folder.mkdir(exist_ok=True)
    for path in folder.iterdir():
        if path.name not in files:
            path.unlink()
    for name, data in files.items():
        (folder / name).write_bytes(data)
    return folder
