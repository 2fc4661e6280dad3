"""Doctor: what can and cannot run on this machine. It looks at versions, devices, fonts and free space.

Nothing is downloaded and no connection is tried. Not here: what a configuration will cost (`plan`).
"""

import importlib
import importlib.util
import json
import os
import shutil
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from enum import StrEnum
from importlib import metadata
from pathlib import Path
from tempfile import gettempdir

PROJECT = "task-interference"
GIB = 2**30
LEAST_DISK = 1 * GIB
"""Bytes below which a disk counts as full: a run keeps gradients there, a download a model."""
LEAST_MEMORY = 2 * GIB
"""Bytes below which torch and a small base do not fit."""
MODULES = {
    "pillow": "PIL",
    "pyyaml": "yaml",
    "scikit-learn": "sklearn",
    "vl-convert-python": "vl_convert",
    "easy-vqa": "easy_vqa",
    "lmms-eval": "lmms_eval",
}
"""Packages whose modules have another name."""
OPTIONAL = {
    "bitsandbytes": "4-bit and 8-bit bases (model.quantization) cannot be loaded",
    "easy-vqa": "`interference demo` and the tasks of the mini suite with its pictures cannot run",
    "xarray": "`run.to_xarray()` cannot run",
    "torchjd": "a training cannot combine its tasks' gradients (training.combine)",
    "tensorboard": "a training cannot log to TensorBoard (report_to: [tensorboard])",
    "wandb": "a training cannot log to Weights & Biases (report_to: [wandb])",
    "lmms-eval": "the model `mixlora_llava` cannot be scored by lmms-eval",
}
"""Packages that are not required, and what does not work without them."""
WITH = {"torchjd": "'torchjd[cagrad,quadprog-projector]'"}
"""What to install where a package needs others that it does not bring by itself."""
SIGNS = {
    "emoji": ("\N{GRINNING FACE}", "fonts-symbola"),
    "Chinese": ("\N{CJK UNIFIED IDEOGRAPH-4E2D}", "fonts-noto-cjk"),
}
"""A sign of each kind, and a package of Debian that draws it."""
BROWSERS = ("chromium", "chromium-browser", "google-chrome")


class Status(StrEnum):
    """How a part of the machine is."""

    OK = "ok"
    MISSING = "missing"  # something else cannot run
    BROKEN = "broken"  # nothing can be relied on


@dataclass(frozen=True)
class Finding:
    """One line of the doctor.

    Attributes:
        what: The part that was looked at.
        status: How it is.
        found: What is there, if anything: a version, a size.
        lost: What does not work, if anything.
        remedy: How to get it.
    """

    what: str
    status: Status
    found: str = ""
    lost: str = ""
    remedy: str = ""

    def __str__(self) -> str:
        state = ", ".join(part for part in (self.status.value, self.found) if part)
        advice = "; ".join(part for part in (self.lost, self.remedy) if part)
        return ": ".join(part for part in (self.what, state, advice) if part)


def look() -> Iterator[Finding]:
    """Every part of the machine, one at a time: what is required first."""
    yield _python()
    yield from map(_required, _requirements())
    yield from _namesakes()
    for check in (_devices, _memory, _disks, _hub, _fonts):
        yield from _survived(check)
    yield _browser()
    yield from (_optional(name, lost) for name, lost in OPTIONAL.items())
    yield _terminal()


def to_json(found: Sequence[Finding]) -> str:
    """The findings as a list of JSON objects."""
    return json.dumps([asdict(finding) for finding in found], indent=2)


def verdict(found: Iterable[Finding]) -> str:
    """The last line: how many parts are broken, and how many are missing."""
    statuses = [finding.status for finding in found]
    if broken := statuses.count(Status.BROKEN):
        return f"{broken} required {'part is' if broken == 1 else 'parts are'} broken; fix these first"
    if not (missing := statuses.count(Status.MISSING)):
        return "everything can run here"
    return f"nothing required is broken; {missing} optional {'part is' if missing == 1 else 'parts are'} missing"


def _python() -> Finding:
    found, needs = ".".join(map(str, sys.version_info[:3])), metadata.metadata(PROJECT)["Requires-Python"]
    if _allows(needs, found):
        return Finding("Python", Status.OK, found)
    return Finding("Python", Status.BROKEN, found, f"{PROJECT} needs {needs}", "make a new environment with it")


def _requirements() -> list[tuple[str, str]]:
    """Name and versions of every package that is needed, whatever extra is asked for; itself first."""
    from packaging.requirements import Requirement

    parsed = [Requirement(text) for text in metadata.requires(PROJECT) or ()]
    here = [one for one in parsed if one.marker is None or one.marker.evaluate({"extra": ""})]
    return [(PROJECT, ""), *((one.name, str(one.specifier)) for one in here)]


def _required(requirement: tuple[str, str]) -> Finding:
    name, needs = requirement
    wanted = f"pip install '{name}{needs}'"
    try:
        found = metadata.version(name)
    except metadata.PackageNotFoundError:
        return Finding(name, Status.BROKEN, "", "it is not installed", wanted)
    if not _allows(needs, found):
        return Finding(name, Status.BROKEN, found, f"{PROJECT} needs {name}{needs}", wanted)
    if name != PROJECT and (why := _import_error(name)):
        return Finding(name, Status.BROKEN, found, f"it cannot be imported ({why})", f"{wanted} --force-reinstall")
    return Finding(name, Status.OK, found)


def _allows(needs: str, version: str) -> bool:
    from packaging.specifiers import SpecifierSet

    return SpecifierSet(needs).contains(version, prereleases=True)


def _import_error(name: str) -> str:
    """Why a package cannot be imported; "" if it can."""
    try:
        importlib.import_module(MODULES.get(name, name))
    except Exception as error:  # whatever a broken installation raises
        return f"{type(error).__name__}: {str(error).partition(chr(10))[0]}"
    return ""


def _namesakes() -> Iterator[Finding]:
    """The unrelated package `mixlora`, whose files overwrite ours."""
    try:
        found = metadata.version("mixlora")
    except metadata.PackageNotFoundError:
        return
    remedy = f"pip uninstall mixlora, then pip install --force-reinstall --no-deps {PROJECT}"
    yield Finding("mixlora", Status.BROKEN, found, "an unrelated package has the same import name", remedy)


def _survived(check: Callable[[], Iterable[Finding]]) -> list[Finding]:
    """What a check finds; an error of a broken package counts as missing."""
    try:
        return list(check())
    except Exception as error:  # the broken package has its own line already
        name = check.__name__.strip("_")
        return [Finding(name, Status.MISSING, "", f"this was not checked ({type(error).__name__}: {error})")]


def _devices() -> Iterator[Finding]:
    import torch

    yield Finding("CPU", Status.OK, f"{os.cpu_count()} cores, {torch.get_num_threads()} torch threads")
    if not torch.cuda.is_available():
        build = "its CPU build" if torch.version.cuda is None else f"its build for CUDA {torch.version.cuda}"
        lost = "models run on the CPU, which is slow for bases of billions of parameters"
        remedy = f"on a machine with a GPU, install its driver and a CUDA build of torch (here: {build})"
        yield Finding("GPU", Status.MISSING, "", lost, remedy)
    for index in range(torch.cuda.device_count() if torch.cuda.is_available() else 0):
        card = torch.cuda.get_device_properties(index)
        yield Finding(f"GPU {index}", Status.OK, f"{card.name}, {_gib(card.total_memory)}")


def _memory() -> Iterator[Finding]:
    import psutil

    state, limit = psutil.virtual_memory(), _cgroup_limit()
    total, free = min(state.total, limit), min(state.available, limit)
    found = f"{_gib(free)} free of {_gib(total)}"
    if free >= LEAST_MEMORY:
        yield Finding("memory", Status.OK, found)
    else:
        lost = f"less than {_gib(LEAST_MEMORY)} is free, and even small bases may not fit"
        yield Finding("memory", Status.MISSING, found, lost, "end other programs, or raise the container's limit")


def _cgroup_limit(file: Path = Path("/sys/fs/cgroup/memory.max")) -> int:
    """Bytes that a container grants."""
    try:
        return int(file.read_text(encoding="ascii"))
    except (OSError, ValueError):  # no container, or "max"
        return sys.maxsize


def _disks() -> Iterator[Finding]:
    from huggingface_hub.constants import HF_HUB_CACHE

    yield _disk("temporary files", Path(gettempdir()), "set TMPDIR to a disk with room")
    yield _disk("models of the hub", Path(HF_HUB_CACHE), "set HF_HOME to a disk with room")
    yield _disk("this directory", Path.cwd(), "give --out and --spool-dir on a disk with room")


def _disk(what: str, folder: Path, remedy: str) -> Finding:
    there = next(place for place in (folder, *folder.parents) if place.exists())
    free = shutil.disk_usage(there).free
    found = f"{_gib(free)} free at {folder}"
    if not os.access(there, os.W_OK):
        return Finding(f"disk, {what}", Status.MISSING, found, f"{there} cannot be written", remedy)
    if free < LEAST_DISK:
        return Finding(f"disk, {what}", Status.MISSING, found, f"less than {_gib(LEAST_DISK)} is free", remedy)
    return Finding(f"disk, {what}", Status.OK, found)


def _fonts() -> Iterator[Finding]:
    from interference.figures.canvas import family_with

    for kind, (sign, package) in SIGNS.items():
        if family := family_with(sign):
            yield Finding(f"font, {kind}", Status.OK, family)
        else:
            lost = f"figures draw boxes instead of {kind} characters in task names"
            remedy = f"apt-get install {package}, or another font that has them"
            yield Finding(f"font, {kind}", Status.MISSING, "", lost, remedy)


def _browser() -> Finding:
    if path := next(filter(None, map(shutil.which, BROWSERS)), None):
        return Finding("Chromium", Status.OK, path)
    lost = "the tests of the page are skipped; any browser opens the page itself"
    return Finding("Chromium", Status.MISSING, "", lost, "apt-get install chromium")


def _optional(name: str, lost: str) -> Finding:
    try:
        found = metadata.version(name)
    except metadata.PackageNotFoundError:
        return Finding(name, Status.MISSING, "", lost, f"pip install {WITH.get(name, name)}")
    if importlib.util.find_spec(MODULES.get(name, name)) is None:
        remedy = f"pip install --force-reinstall {name}"
        return Finding(name, Status.MISSING, found, f"its files are missing, so {lost}", remedy)
    return Finding(name, Status.OK, found)


def _hub() -> Iterator[Finding]:
    from huggingface_hub.constants import HF_HUB_OFFLINE

    if HF_HUB_OFFLINE:
        lost = "HF_HUB_OFFLINE is set, so models and data come only from paths and the cache"
        yield Finding("Hugging Face hub", Status.MISSING, "", lost, "unset it to allow downloads")
    else:
        yield Finding("Hugging Face hub", Status.OK, "downloads are allowed (no connection was tried)")


def _terminal() -> Finding:
    encoding = (sys.stdout.encoding or "ascii").lower()
    try:
        "│↵Δ".encode(encoding)
    except UnicodeEncodeError:
        lost = "table frames and symbols cannot be printed"
        return Finding("terminal", Status.MISSING, encoding, lost, "set PYTHONIOENCODING=utf-8 and a UTF-8 locale")
    return Finding("terminal", Status.OK, encoding)


def _gib(size: float) -> str:
    return f"{size / GIB:.1f} GiB"
