"""Directories that a command writes anew each time, as reports and figures: only what it wrote itself is replaced.

The directory keeps a list of the files with digests of their content, `.written.json`. A file that is not listed, or is
not as it was written, is the user's, and so is what lies behind a link.
"""

import os
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import xxhash

from mixlora.common.errors import RunError, reason, unwritable
from mixlora.common.files import exists, read_json
from mixlora.common.writing import growing, replace_files, write_json

LIST = ".written.json"
_TEMPORARY = re.compile(r"\.(.+)\.[0-9a-f]{8}\.tmp")  # of `writing.unique`
_OWN = {LIST, growing(Path(LIST)).name}


class OutputFolder:
    """A directory that is absent, empty, or of the same command.

    Args:
        path: the directory.
        command: that writes it, for messages: "interference report".

    Raises:
        RunError: it holds something that the command did not write, or something that has changed since.
    """

    def __init__(self, path: Path, command: str) -> None:
        self.path, self.command = path, command
        self._check()

    def replace(self, files: Mapping[str, bytes], keep: bool = False) -> list[Path]:
        """Write files, all or none, in place of those that were written before; their paths.

        Args:
            files: {path within the directory: content}.
            keep: whether earlier files of other names stay.

        Raises:
            RunError: they cannot be written; those of earlier calls stay.
        """
        listed, new = self._check(), {name: [_digest(content)] for name, content in files.items()}
        paths = {self.path / name: content for name, content in files.items()}
        held = () if keep or not exists(self.path) else [*self._held()]  # a list may name files elsewhere
        gone = [name for name in held if name in listed and name not in new]
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            both = {name: [*listed.get(name, ()), *new.get(name, ())] for name in listed | new}
            write_json(self.path / LIST, {"by": self.command, "files": both})  # a kill leaves one or the other
            replace_files(paths)
            for name in [*gone, *self._left(listed)]:
                (self.path / name).unlink(missing_ok=True)
            write_json(self.path / LIST, {"by": self.command, "files": (listed if keep else {}) | new})
        except OSError as error:
            raise unwritable(f"{self.path} cannot be written", error, again="start again") from None
        return list(paths)

    def _check(self) -> dict[str, list[str]]:
        """The listed files, by their paths within: {path: digests of what the command wrote}."""
        if not exists(self.path):
            return {}
        if not self.path.is_dir():
            raise RunError(f"--out {self.path} is a file; give a directory")
        try:
            listed = self._listed()
            left = set(self._left(listed))
            for name in self._held():
                file = self.path / name
                if name in left:
                    continue
                if name not in listed:
                    raise RunError(
                        f"{file} is not listed as written by {self.command}; earlier versions kept no list: choose "
                        "another --out, or move it"
                    )
                if file.is_symlink() or _digest(file.read_bytes()) not in listed[name]:
                    raise RunError(
                        f"{file} has changed since {self.command} wrote it; choose another --out, or move or delete it"
                    )
        except (OSError, ValueError) as error:
            raise RunError(f"{self.path} cannot be read: {reason(error)}; choose another --out") from None
        return listed

    def _listed(self) -> dict[str, list[str]]:
        if not exists(self.path / LIST):
            return {}
        try:
            found = read_json(self.path / LIST)
            own = found["by"] == self.command
            return {str(name): [str(digest) for digest in digests] for name, digests in found["files"].items() if own}
        except (ValueError, LookupError, TypeError, AttributeError):
            return {}

    def _held(self) -> Iterator[str]:
        """Paths within of everything but folders, links among them, which are not followed."""
        for folder, folders, files in os.walk(self.path, onerror=_raise):
            place = Path(folder).relative_to(self.path)
            links = [name for name in folders if (Path(folder) / name).is_symlink()]
            yield from ((place / name).as_posix() for name in [*files, *links] if not self._is_own(place, name))

    def _left(self, listed: Mapping[str, Any]) -> Iterator[str]:
        """What a killed process left of listed files under temporary names."""
        for name in self._held():
            place, own = Path(name).parent, _TEMPORARY.fullmatch(Path(name).name)
            if own and (place / own[1]).as_posix() in listed:
                yield name

    @staticmethod
    def _is_own(place: Path, name: str) -> bool:
        return place == Path() and name in _OWN


def _digest(content: bytes) -> str:
    return xxhash.xxh3_128_hexdigest(content)


def _raise(error: OSError) -> None:
    raise error
