"""Pictures of records: found, kept inside their folder, upright, and refused by name."""

import io
import json
import os
import struct
import subprocess
import sys
import zlib
from pathlib import Path

import pytest
from PIL import Image

from mixlora.common.errors import DataError
from mixlora.data.images import image_size, open_image
from mixlora.data.reading.tasks import read_tasks
from tests.support.needed import needed
from tests.support.paths import ROOT
from tests.support.records import read, refusal, save_picture, task_of, with_image, write

# --- pictures ---


def test_a_missing_image_is_found_when_reading(tmp_path):
    file = write(tmp_path, {"prompt": "What?", "response": "Red", "image": "gone.png"})
    assert refusal(file) == (
        f"records.jsonl:1: the image 'gone.png' is not in {tmp_path}; put it there or set `images` to its folder."
    )
    (tmp_path / "gone.png").mkdir()
    assert "the image 'gone.png' is not in" in refusal(file)


@pytest.mark.parametrize(
    ("name", "remedy"),
    [
        ("../a.png", "name it relative to that folder (`images`), or allow this with `outside: true`."),
        ("in/../../a.png", "name it relative to that folder (`images`), or allow this with `outside: true`."),
        ("/etc/hostname", "name it relative to that folder (`images`), or allow this with `outside: true`."),
        ("link.png", "replace the link by a copy, or allow this with `outside: true`."),
        ("out/a.png", "replace the link by a copy, or allow this with `outside: true`."),
    ],
)
def test_no_image_leaves_the_image_folder(tmp_path, name, remedy):
    save_picture(tmp_path / "a.png")
    folder = tmp_path / "images"
    (folder / "in").mkdir(parents=True)
    (folder / "link.png").symlink_to(tmp_path / "a.png")
    (folder / "out").symlink_to(tmp_path)
    file = write(tmp_path, {"prompt": "What?", "response": "Red", "image": name})
    told = refusal(file, images=folder)
    assert told == f"records.jsonl:1: the image '{name}' lies outside the image folder {folder}; {remedy}"


def test_links_inside_the_folder_are_followed(tmp_path):
    save_picture(tmp_path / "images" / "a.png")
    (tmp_path / "images" / "b.png").symlink_to("a.png")
    (tmp_path / "linked").symlink_to("images")
    file = write(tmp_path, {"prompt": "What?", "response": "Red", "image": "b.png"})
    (example,) = read(file, images=tmp_path / "linked")
    assert open_image(example).size == (6, 4)


@pytest.mark.parametrize("name", ["x" * 5000, "a\0b", "loop.png"])
def test_names_that_no_file_has(tmp_path, name):
    (tmp_path / "loop.png").symlink_to("loop.png")
    assert "is not in" in refusal(write(tmp_path, {"prompt": "What?", "response": "Red", "image": name}))


def test_pictures_come_upright_and_in_rgb(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned a quarter clockwise
    lying = Image.new("RGB", (64, 32), (0, 0, 0))
    lying.paste((255, 255, 255), (0, 0, 32, 32))
    lying.save(tmp_path / "a.jpg", exif=exif, quality=95)
    example = with_image(tmp_path / "a.jpg")
    upright = open_image(example)
    assert (upright.size, upright.mode, image_size(example)) == ((32, 64), "RGB", (32, 64))
    assert upright.getpixel((16, 8)) > (250, 250, 250) and upright.getpixel((16, 56)) < (5, 5, 5)
    for mode in ("L", "P", "RGBA", "CMYK", "1"):
        assert open_image(with_image(Image.new(mode, (3, 2)))).mode == "RGB"


def png_of(width: int, height: int) -> bytes:
    """A PNG that claims a size and holds no pixel."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"")) + chunk(b"IEND", b"")


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "cannot identify image file"),
        (b"no picture", "cannot identify image file"),
        (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\n", "cannot identify image file"),
        (png_of(9000, 9000), "9000 x 9000 pixels are more than the limit of 67108864"),
        (png_of(100_000, 100_000), "exceeds limit"),
        (png_of(40, 40), ""),
    ],
)
def test_pictures_that_cannot_be_used_are_named(tmp_path, content, reason):
    path = tmp_path / "a.png"
    path.write_bytes(content)
    with pytest.raises(DataError) as error:
        open_image(with_image(path))
    told = str(error.value)
    assert told.startswith(f"f.jsonl:1: the image {path} cannot be used (") and reason in told
    assert told.endswith("); replace or drop it.")


def test_the_size_of_a_png_needs_its_pixels_only_for_an_orientation(tmp_path):
    whole = save_picture(tmp_path / "a.png", (64, 32)).read_bytes()
    exif = Image.Exif()
    exif[0x0112] = 6
    data = exif.tobytes()[6:]  # without "Exif\0\0"
    chunk = struct.pack(">I", len(data)) + b"eXIf" + data + struct.pack(">I", zlib.crc32(b"eXIf" + data))
    (tmp_path / "late.png").write_bytes(whole[:-12] + chunk + whole[-12:])
    save_picture(tmp_path / "early.png", (64, 32), exif=exif)
    for name in ("late.png", "early.png"):
        example = with_image(tmp_path / name)
        assert image_size(example) == open_image(example).size == (32, 64)
    (tmp_path / "cut.png").write_bytes(whole[:-30])
    assert image_size(with_image(tmp_path / "cut.png")) == image_size(with_image(tmp_path / "a.png")) == (64, 32)
    with pytest.raises(DataError, match=r"cut.png cannot be used"):
        open_image(with_image(tmp_path / "cut.png"))


@pytest.mark.parametrize("suffix", ["png", "jpg", "webp", "gif", "bmp", "tiff"])
def test_pictures_cut_off_are_named_when_opened(tmp_path, suffix):
    path = save_picture(tmp_path / f"a.{suffix}", (64, 64))
    noise = Image.frombytes("RGB", (64, 64), os.urandom(64 * 64 * 3))
    noise.save(path)
    assert open_image(with_image(path)).size == (64, 64)
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    with pytest.raises(DataError, match=rf"f.jsonl:1: the image .*a.{suffix} cannot be used"):
        open_image(with_image(path))


def test_a_broken_picture_in_memory_is_told_apart_from_a_file(tmp_path):
    data = save_picture(tmp_path / "a.png", (64, 64)).read_bytes()
    with pytest.raises(DataError, match=r"f.jsonl:1: the image in the record cannot be used"):
        open_image(with_image(Image.open(io.BytesIO(data[:-40]))))
    with pytest.raises(DataError, match="it is not a picture"):
        open_image(with_image(None))


def test_reading_imports_neither_torch_nor_transformers(tmp_path):
    file = write(tmp_path, {"prompt": "What?", "response": "Red"})
    code = (
        "import sys; from mixlora.common.sections import TaskSection; from mixlora.data.sampling import sample\n"
        "from mixlora.data.reading.tasks import read_task\n"
        f"sample(read_task(TaskSection(file={str(file)!r}), 't'), 1, 0, 't')\n"
        "print([m for m in ('torch', 'transformers', 'datasets', 'pyarrow') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, check=True)
    assert done.stdout.strip() == "[]"


def test_two_placeholders_are_two_images(tmp_path):
    save_picture(tmp_path / "a.png")
    turns = [{"from": "human", "value": "<image><image>\nWhat?"}, {"from": "gpt", "value": "Red"}]
    file = write(tmp_path, {"image": "a.png", "conversations": turns})
    assert refusal(file) == "records.jsonl:1: the text has <image> 2 times, but the record has 1 images."


def test_images_elsewhere_are_allowed_by_a_flag_alone(tmp_path):
    save_picture(tmp_path / "a.png")
    (tmp_path / "images").mkdir()
    (tmp_path / "images" / "link.png").symlink_to(tmp_path / "a.png")
    for name in ("../a.png", str(tmp_path / "a.png"), "link.png"):
        file = write(tmp_path, {"prompt": "What?", "response": "Red", "image": name})
        assert refusal(file, images=tmp_path / "images").endswith("or allow this with `outside: true`.")
        (example,) = read(file, images=tmp_path / "images", outside=True)
        assert open_image(example).size == (6, 4)
    file = write(tmp_path, {"prompt": "What?", "response": "Red", "image": "../gone.png"})
    assert "is not in" in refusal(file, images=tmp_path / "images", outside=True)


def test_pipes_and_devices_in_the_place_of_files_are_not_waited_for(tmp_path):
    os.mkfifo(tmp_path / "a.png")
    (tmp_path / "b.png").symlink_to("/dev/zero")
    for name in ("a.png", "b.png"):
        file = write(tmp_path, {"prompt": "What?", "response": "Red", "image": name})
        assert "is not in" in refusal(file, outside=True)
        with pytest.raises(DataError, match="it is not a regular file, or has more than"):
            open_image(with_image(tmp_path / name))
    os.mkfifo(tmp_path / "records.json")
    assert "it is a pipe or a device, not a regular file; give a file that can" in refusal(tmp_path / "records.json")


@pytest.mark.parametrize("kind", ["png", "bmp", "gif", "webp", "ppm", "tiff"])
def test_a_picture_that_claims_too_much_is_refused_by_its_header(tmp_path, kind):
    """50,000 x 50,000 pixels are 7.5 GB decoded; of WebP 16,000 x 16,000, its most."""
    path = save_picture(tmp_path / f"a.{kind}", (9, 7))
    side, data = 50_000, bytearray(path.read_bytes())
    if kind == "png":
        data = bytearray(png_of(side, side))
    elif kind == "bmp":
        data[18:26] = struct.pack("<ii", side, side)
    elif kind == "gif":
        data[6:10] = struct.pack("<HH", side, side)
    elif kind == "webp":
        frames = [Image.new("RGB", (9, 7), color) for color in ("red", "blue")]
        frames[0].save(path, save_all=True, append_images=frames[1:])
        data = bytearray(path.read_bytes())
        data[24:30] = (15_999).to_bytes(3, "little") * 2
    elif kind == "ppm":
        data = bytearray(b"P6 50000 50000 255\n" + b"x" * 100)
    else:
        for tag in (256, 257):
            at = data.index(struct.pack("<HHI", tag, 4, 1)) if struct.pack("<HHI", tag, 4, 1) in data else -1
            data[at + 8 : at + 12] = struct.pack("<I", side)
    path.write_bytes(data)
    for do in (open_image, image_size):
        with pytest.raises(DataError, match="exceeds limit"):
            do(with_image(path))


def test_a_file_of_a_picture_is_bounded_too(tmp_path):
    path = save_picture(tmp_path / "a.png")
    with path.open("r+b") as file:
        file.truncate(2**29 + 1)  # a hole, which takes no room
    with pytest.raises(DataError, match="or has more than 536870912 bytes"):
        open_image(with_image(path))


@pytest.mark.parametrize("field", ["id", "image", "task"])
def test_half_a_character_cannot_be_written_again_and_is_refused(tmp_path, field):
    record = {"prompt": "What?", "response": "Red", "task": "t"} | {field: "\ud800"}
    told = refusal(write(tmp_path, record)) if field != "task" else ""
    if field == "task":
        with pytest.raises(DataError) as error:
            read_tasks(task_of(file=write(tmp_path, record), by="task"), "t")
        told = str(error.value)
    assert told == f"records.jsonl:1: the text of {field} holds '\\ud800', half a character; remove it."


def saved_dataset(folder: Path, **columns) -> Path:
    datasets = needed("datasets")
    rows = {"prompt": ["What?"], "response": ["Red"], **columns}
    datasets.Dataset.from_dict(rows).save_to_disk(str(folder))
    return folder


def test_a_dataset_names_no_file_but_its_own(tmp_path):
    folder, other = saved_dataset(tmp_path / "d"), saved_dataset(tmp_path / "other")
    state = json.loads((folder / "state.json").read_text())
    arrow = state["_data_files"][0]["filename"]
    os.mkfifo(folder / "pipe")
    for name in (f"../other/{arrow}", str(other / arrow), "pipe", "/dev/zero", "gone"):
        (folder / "state.json").write_text(json.dumps(state | {"_data_files": [{"filename": name}]}))
        assert "which is not a file in" in refusal(folder)


def test_what_a_datasets_features_would_decode_is_left_as_it_is(tmp_path):
    datasets = needed("datasets")
    secret = save_picture(tmp_path / "secret.png")
    images = [[{"bytes": None, "path": str(secret)}], [{"bytes": secret.read_bytes(), "path": None}]]
    folder = saved_dataset(tmp_path / "d", images=images, prompt=["What?"] * 2, response=["Red"] * 2)
    info = json.loads((folder / "dataset_info.json").read_text())
    info["features"]["images"] = {"feature": {"_type": "Image"}, "_type": "List"}
    (folder / "dataset_info.json").write_text(json.dumps(info))
    assert datasets.load_from_disk(str(folder))[0]["images"][0].size == (6, 4)  # what a reader of its rows would get
    assert "secret.png' lies outside the image folder" in refusal(folder)
