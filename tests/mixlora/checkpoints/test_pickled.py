"""Namespaces of every pickle protocol are read, and nothing that a pickle asks for is done."""

import argparse
import os
import pickle
import zipfile
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from mixlora.checkpoints import pickled
from mixlora.checkpoints.pickled import map_tensors, read_namespace
from mixlora.common.errors import CheckpointError


@pytest.mark.parametrize("kind", [SimpleNamespace, argparse.Namespace])
@pytest.mark.parametrize("protocol", range(6))
def test_namespaces_of_every_protocol_are_read(tmp_path, kind, protocol):
    values = {
        "text": "é" * 300,
        "empty": "",
        "whole": 2**70,
        "negative": -3,
        "byte": 200,
        "short": 60000,
        "long": 70000,
    }
    values |= {"real": 0.05, "yes": True, "no": False, "none": None, "list": [1, [2, "x"], []], "one": [7]}
    values |= {"tuple": (1, (2,), (3, 4), (5, 6, 7, 8), ()), "dict": {"a": {1: None}, "b": 2}, "alone": {"c": 3}}
    shared = ["same"]
    values |= {"shared": shared, "again": shared}
    path = tmp_path / "args"
    path.write_bytes(pickle.dumps(kind(**values), protocol))
    found = read_namespace(path)
    assert found == values and [type(v) for v in found.values()] == [type(v) for v in values.values()]
    torch.save(kind(**values), path, pickle_protocol=max(protocol, 2))
    assert read_namespace(path) == values


class Touch:
    """Its unpickling would make a file."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


def inside(value):
    return SimpleNamespace(a=[value])


@pytest.mark.parametrize("protocol", range(6))
@pytest.mark.parametrize("wrap", [lambda value: value, inside])
@pytest.mark.parametrize("zipped", [False, True])
def test_a_malicious_namespace_does_nothing(tmp_path, protocol, wrap, zipped):
    path, trap = tmp_path / "cmoa_args.bin", tmp_path / "trap"
    if zipped:
        torch.save(wrap(Touch(trap)), path, pickle_protocol=max(protocol, 2))
    else:
        path.write_bytes(pickle.dumps(wrap(Touch(trap)), protocol))
    with pytest.raises(CheckpointError, match=r"cmoa_args.bin holds the global .*mkdir.* nothing is executed"):
        read_namespace(path)
    assert not trap.exists()


def nested(depth):
    """Twice the same tuple in a tuple, and so on: a walk through it never ends."""
    found = ()
    for _ in range(depth):
        found = (found, found)
    return found


@pytest.mark.parametrize(
    ("stored", "words"),
    [
        (pickle.dumps({"a": 1}), "a value of type dict in place of a namespace"),
        (pickle.dumps(SimpleNamespace(a=SimpleNamespace())), "a namespace in place of a plain value"),
        (pickle.dumps(SimpleNamespace(a=b"x")), "the pickle opcode SHORT_BINBYTES"),
        (pickle.dumps(SimpleNamespace(a={1, 2})), "the pickle opcode EMPTY_SET"),
        (pickle.dumps(SimpleNamespace(a=SimpleNamespace)), "the global 'types.SimpleNamespace'"),
        (pickle.dumps(SimpleNamespace(a=(SimpleNamespace, 1))), "a tuple of globals in place of a plain value"),
        (pickle.dumps(SimpleNamespace(a={(1, 2): 3})), "a value of type tuple as the key of a dict"),
        (pickle.dumps(SimpleNamespace(a=torch.float32)), "the global 'torch.float32'"),
        (pickle.dumps(SimpleNamespace(a=Path("x"))), "the global 'pathlib"),
        (b"ctypes\nSimpleNamespace\n(I1\ntR.", "a call of the global 'types.SimpleNamespace' with 1 arguments"),
        (b"]}b.", "an object that is not a namespace"),
        (b"}I1\na.", "an append to something that is not a list"),
        (b"]I1\nI2\ns.", "items of something that is not a dict"),
        (b"", "not a pickle, or is damaged"),
        (b"not a pickle", "not a pickle, or is damaged"),
        (b"N", "not a pickle, or is damaged"),
        (b"NN.", "not a pickle, or is damaged"),
        (b"h\x05.", "not a pickle, or is damaged"),
        (b"e.", "not a pickle, or is damaged"),
        (b"\x86.", "not a pickle, or is damaged"),
        (b"I" + b"9" * 5000 + b"\n.", "not a pickle, or is damaged"),
        (b"K\x01K\x02\x93.", "a global that is not named by strings"),
        (pickle.dumps(SimpleNamespace(a=[10**5000])), "a whole number of 16610 bits"),
        (pickle.dumps(nested(40), 2).rstrip(b".") + b")R.", "a call of a value of type tuple with 0 arguments"),
    ],
)
def test_what_is_no_plain_namespace_is_refused(tmp_path, stored, words):
    path = tmp_path / "cmoa_args.bin"
    path.write_bytes(stored)
    with pytest.raises(CheckpointError) as caught:
        read_namespace(path)
    assert words in str(caught.value) and str(path) in str(caught.value) and "\n" not in str(caught.value)


def test_a_namespace_of_unlikely_size_is_not_read(tmp_path):
    path = tmp_path / "cmoa_args.bin"
    path.write_bytes(pickle.dumps(SimpleNamespace(a="x" * 2**20)))
    with pytest.raises(CheckpointError, match="above 1 MiB"):
        read_namespace(path)
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("archive/data.pkl", pickle.dumps(SimpleNamespace(a="x" * 2**24)))
    assert path.stat().st_size < 2**20
    with pytest.raises(CheckpointError, match="above 1 MiB"):
        read_namespace(path)
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("other", "")
    with pytest.raises(CheckpointError, match=r"0 members data\.pkl"):
        read_namespace(path)
    path.unlink()
    with pytest.raises(CheckpointError, match="cannot be read: No such file"):
        read_namespace(path)


def test_malicious_tensors_do_nothing(tmp_path):
    trap = tmp_path / "trap"
    torch.save({"model.mm_projector.weight": Touch(trap)}, tmp_path / "mm_projector.bin")
    with pytest.raises(CheckpointError, match="objects other than tensors, or is damaged"):
        map_tensors(tmp_path / "mm_projector.bin")
    torch.save([torch.zeros(1)], tmp_path / "mm_projector.bin")
    with pytest.raises(CheckpointError, match="more than named tensors"):
        map_tensors(tmp_path / "mm_projector.bin")
    assert not trap.exists()


TENSOR = b"ctorch._utils\n_rebuild_tensor_v2\n"
STORAGE = b"(X\x07\0\0\0storagectorch\nFloatStorage\nX\x01\0\0\0%bX\x03\0\0\0cpuK\x04tQ"
DAMAGED = {
    "empty": b"",
    "no value": b".",
    "no mark": b"t.",
    "no arguments": TENSOR + b")R.",
    "cut off in a number": b"J\x01\0",
    "cut off in a text": b"X\x09\0\0\0abc",
    "no such slot": b"h\x05.",
    "no such storage": TENSOR + b"(" + STORAGE % b"7" + b"K\0(K\x04t(K\x01t\x89}tR.",
    "more than its storage": TENSOR + b"(" + STORAGE % b"0" + b"K\0(K\x40t(K\x01t\x89}tR.",
    "sizes that are none": TENSOR + b"(" + STORAGE % b"0" + b"K\0NN\x89}tR.",
    "items of no dict": b"NK\x01K\x02s.",
}


def zipped(path, pickled):
    """A file of torch.save with this pickle and a storage of four numbers."""
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in (("data.pkl", pickled), ("version", b"3\n"), ("data/0", bytes(16))):
            archive.writestr(f"archive/{name}", content)
    return path


@pytest.mark.parametrize("name", DAMAGED)
@pytest.mark.parametrize("bare", [False, True])
def test_damaged_tensors_are_told_in_one_sentence(tmp_path, name, bare):
    path = tmp_path / "mm_projector.bin"
    if bare:
        path.write_bytes(DAMAGED[name])
    else:
        zipped(path, DAMAGED[name])
    with pytest.raises(CheckpointError) as caught:
        map_tensors(path)
    said = str(caught.value)
    _, _, told = said.partition(f"no tensors can be read from {path}: ")
    assert len(told) > 5 or said.startswith(f"{path} contains objects other than tensors, or is damaged;")
    assert "\n" not in said


def test_the_smallest_whole_file_is_read(tmp_path):
    """As the damaged ones are made: it is not how they are wrapped that is wrong."""
    tensor = TENSOR + b"(" + STORAGE % b"0" + b"K\0(K\x04t(K\x01t\x89}tR"
    found = map_tensors(zipped(tmp_path / "x.bin", b"}X\x01\0\0\0x" + tensor + b"s."))
    assert list(found) == ["x"] and torch.equal(found["x"], torch.zeros(4))
    with pytest.raises(CheckpointError, match=r"x\.bin contains more than named tensors"):
        map_tensors(zipped(tmp_path / "x.bin", b"}K\x01" + tensor + b"s."))


def test_an_error_without_words_is_told_by_its_name(tmp_path, mixlora):
    path = zipped(tmp_path / "mm_projector.bin", DAMAGED["empty"])
    assert mixlora("info", path) == (2, "", f"error: no tensors can be read from {path}: EOFError\n")


def test_an_old_torch_file_is_read_if_it_is_small(tmp_path, monkeypatch):
    path, tensors = tmp_path / "old.bin", {"x": torch.arange(6.0)}
    torch.save(tensors, path, _use_new_zipfile_serialization=False)
    assert torch.equal(map_tensors(path)["x"], tensors["x"])
    monkeypatch.setattr(pickled, "LARGEST_UNMAPPED", 10)
    with pytest.raises(CheckpointError, match=r"torch before 1\.6 and more than 1 GiB.*save it again"):
        map_tensors(path)
