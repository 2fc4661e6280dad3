"""The two files of a release: built, described as package indexes want it, and holding what they should."""

import shutil
import subprocess
import sys
import tarfile
import tomllib
import zipfile
from pathlib import Path

from tests.support.paths import ROOT

PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
PACKAGES = ("interference", "mixlora")
GENERATED = {"PKG-INFO", "setup.cfg", "task_interference.egg-info"}
"""What setuptools adds to an sdist."""


def build(folder: Path) -> tuple[Path, Path]:
    """The sdist and the wheel, built in a folder that is emptied before; the wheel from the unpacked sdist."""
    shutil.rmtree(folder, ignore_errors=True)
    _python("build", "--outdir", folder, ROOT)
    stem = f"{PROJECT['name'].replace('-', '_')}-{PROJECT['version']}"
    sdist, wheel = folder / f"{stem}.tar.gz", folder / f"{stem}-py3-none-any.whl"
    assert set(folder.iterdir()) == {sdist, wheel}, sorted(folder.iterdir())
    _python("twine", "check", "--strict", sdist, wheel)
    return sdist, wheel


def check_sdist(file: Path) -> int:
    """Check that an sdist holds every tracked file and nothing else; the number of files."""
    with tarfile.open(file) as archive:
        inside = [Path(member.name) for member in archive.getmembers() if member.isfile()]
    names = {Path(*path.parts[1:]).as_posix() for path in inside}
    own = {name for name in names if name.split("/")[0] not in GENERATED}
    _same("the sdist", own, tracked())
    return len(names)


def check_wheel(file: Path) -> int:
    """Check that a wheel holds every tracked file of the packages, and nothing else but its metadata; their number."""
    with zipfile.ZipFile(file) as archive:
        names = set(archive.namelist())
        described = next(name for name in names if name.endswith(".dist-info/METADATA"))
        metadata = archive.read(described).decode()
    about = described.split("/")[0]
    own = {name for name in names if name.split("/")[0] != about}
    _same("the wheel", own, {name for name in tracked() if name.split("/")[0] in PACKAGES})
    licences = {name.removeprefix(f"{about}/licenses/") for name in names if "/licenses/" in name}
    _same("the wheel's licences", licences, set(PROJECT["license-files"]))
    for line in (f"Version: {PROJECT['version']}", f"Requires-Python: {PROJECT['requires-python']}"):
        assert line in metadata.splitlines(), line
    return len(names)


def tracked() -> set[str]:
    """The files of the checkout that git knows."""
    done = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, check=True, capture_output=True, text=True)
    return {name for name in done.stdout.split("\0") if name and (ROOT / name).exists()}


def _python(module: str, *arguments: object) -> None:
    """Run a module; show what it said if it fails."""
    call = [sys.executable, "-m", module, *map(str, arguments)]
    done = subprocess.run(call, capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"{call}\n{done.stdout}\n{done.stderr}"


def _same(what: str, found: set[str], wanted: set[str]) -> None:
    assert found == wanted, f"{what}: not expected {sorted(found - wanted)}, missing {sorted(wanted - found)}"
