"""Disks that take no more: full from some size of a file on, or read-only below a folder."""

import errno
import io
import os
import resource
import signal
from contextlib import contextmanager

import pytest


@contextmanager
def full(size):
    """Inside, a file that grows beyond so many bytes is refused by the system."""
    before, handler = resource.getrlimit(resource.RLIMIT_FSIZE), signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        signal.signal(signal.SIGXFSZ, handler)


@contextmanager
def read_only(folder):
    """Inside, nothing at or below the folder is made, changed or moved; modes do not keep out who may do all."""

    def refusing(module, name, writes):
        own = getattr(module, name)

        def call(path, *arguments, **options):
            inside = isinstance(path, str | os.PathLike) and os.fspath(path).startswith(str(folder))
            if inside and writes(*arguments, **options):
                raise OSError(errno.EROFS, os.strerror(errno.EROFS), os.fspath(path))
            return own(path, *arguments, **options)

        return call

    with pytest.MonkeyPatch.context() as patch:
        for name in ("mkdir", "rename", "replace", "unlink", "rmdir"):
            patch.setattr(os, name, refusing(os, name, lambda *_, **__: True))
        patch.setattr(os, "open", refusing(os, "open", lambda flags, *_, **__: bool(flags & ~os.O_NONBLOCK)))
        patch.setattr(io, "open", refusing(io, "open", lambda mode="r", *_, **__: bool(set(mode) & set("wax+"))))
        yield


def no_room(*_, **__):
    """What writing is where the disk is full."""
    raise OSError(28, "No space left on device")
