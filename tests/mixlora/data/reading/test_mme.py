"""The folder of MME, in both of its layouts, and what is said about one that is not whole."""

import errno
import os
from pathlib import Path

import pytest

from mixlora.common.errors import DataError
from mixlora.data.examples import Example, Turn
from mixlora.data.reading.mme import read_mme
from mixlora.data.reading.tasks import read_tasks
from tests.support.records import save_picture, task_of

PAIR = "Is it red?\tYes\nIs it blue?\tNo\n"


def put(path: Path, content: str | bytes = PAIR) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


@pytest.fixture
def root(tmp_path):
    folder = tmp_path / "MME"
    for name in ("000002", "000001"):
        save_picture(folder / "existence" / f"{name}.jpg")
        put(folder / "existence" / f"{name}.txt")
    save_picture(folder / "celebrity" / "images" / "tt01_shou.PNG")
    put(folder / "celebrity" / "questions_answers_YN" / "tt01_shou.txt", "\ufeffIs\tit?\tNo \r\n\r\n Is she? \tYes\r\n")
    put(folder / "readme.txt", "not a question")
    put(folder / "eval" / "results.txt", "000001.jpg\tIs it red?\tYes\tYes")
    put(folder / "existence" / ".hidden.txt", "")
    return folder


def refusal(root: Path) -> str:
    with pytest.raises(DataError) as error:
        read_mme(root)
    return str(error.value)


def test_both_layouts_are_read(root):
    found = read_mme(root)
    assert list(found) == ["celebrity", "existence"]
    assert found["existence"][:2] == [
        Example(
            f"existence/000001.jpg/{at}",
            "existence",
            (Turn("user", question, (0,)), Turn("assistant", answer)),
            (root / "existence" / "000001.jpg",),
            f"existence/000001.txt:{at}",
        )
        for at, question, answer in ((1, "Is it red?", "Yes"), (2, "Is it blue?", "No"))
    ]
    picture = root / "celebrity" / "images" / "tt01_shou.PNG"
    first, second = found["celebrity"]
    assert (first.id, first.images, first.source) == (
        "celebrity/tt01_shou.PNG/1",
        (picture,),
        "celebrity/tt01_shou.txt:1",
    )
    assert first.turns == (Turn("user", "Is\tit?", (0,)), Turn("assistant", "No"))
    assert (second.turns[0].text, second.source) == ("Is she?", "celebrity/tt01_shou.txt:3")


def test_two_examples_share_each_picture_and_ids_are_unique(root):
    examples = [example for task in read_mme(root).values() for example in task]
    assert len({example.id for example in examples}) == len(examples) == 6
    pictures = [example.images for example in examples]
    assert [pictures.count(picture) for picture in pictures] == [2] * 6


def test_a_configuration_names_the_folder(root):
    assert read_tasks(task_of(mme=str(root)), "unused") == read_mme(root)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (
            "Is it?\tYes\n",
            "existence/000001.txt: 1 lines with text, but a picture has two questions; write one per line.",
        ),
        (PAIR + PAIR, "existence/000001.txt: 4 lines with text, but a picture has two questions; write one per line."),
        ("", "existence/000001.txt: 0 lines with text, but"),
        (
            "Is it?\tYes\nIs it? No",
            "existence/000001.txt:2: no tab between a question and its answer; write question<TAB>",
        ),
        ("\tYes\nIs it?\tNo", "existence/000001.txt:1: no tab between a question and its answer;"),
        ("Is it?\tYes\n\nIs it?\tno", "existence/000001.txt:3: the answer is 'no'; write Yes or No after the tab."),
        (b"Is it?\tYes\n\xff?\tNo", "existence/000001.txt: byte 11 is not UTF-8; save the file as UTF-8."),
    ],
)
def test_texts_that_cannot_be_used(root, content, message):
    put(root / "existence" / "000001.txt", content)
    assert refusal(root).startswith(message)
    problems: list[DataError] = []
    found = read_tasks(task_of(mme=root), "unused", problems)
    assert [str(problem).startswith(message) for problem in problems] == [True]
    assert [example.id for example in found["existence"]] == ["existence/000002.jpg/1", "existence/000002.jpg/2"]


def test_each_text_has_one_picture(root):
    folder = root / "existence"
    save_picture(folder / "000001.png")
    assert refusal(root) == (
        f"existence/000001.txt: the pictures 000001.jpg, 000001.png of that name in {folder}; keep exactly one."
    )
    for name in ("000001.jpg", "000001.png"):
        (folder / name).unlink()
    (folder / "000001.png").symlink_to("gone.png")
    (folder / "000001.jpg").mkdir()
    assert refusal(root) == f"existence/000001.txt: no picture of that name in {folder}; keep exactly one."
    (folder / "000001.txt").unlink()
    put(folder / "000003.txt" / "inside")
    save_picture(folder / "000003.jpg")
    assert refusal(root) == "existence/000003.txt: it cannot be read (Is a directory); check the file."


def test_folders_that_are_not_mme(tmp_path, root):
    assert refusal(tmp_path / "no") == f"{tmp_path / 'no'} is not a folder; check the path in `mme`."
    for folder in (tmp_path, root / "existence"):
        assert refusal(folder) == (
            f"{folder} has no subtask, which is a folder of pictures and texts or of images and questions_answers_YN; "
            "give the folder that holds existence, count and the others."
        )


@pytest.mark.parametrize("inside", ["count", "existence/000001.txt", "existence/000001.jpg", "celebrity/images"])
def test_no_link_leads_out_of_the_folder(tmp_path, root, inside):
    link, outside = root / inside, tmp_path / "outside"
    if link.is_dir() or not link.exists():
        save_picture(outside / "tt01_shou.png")
        put(outside / "tt01_shou.txt")
    if link.exists():
        link.rename(outside if not outside.exists() else tmp_path / "old")
    link.symlink_to(outside)
    remedy = "replace the link by a copy, or allow this with `outside: true`"
    assert refusal(root) == f"{link} is a link that leads out of {root}; {remedy}."


@pytest.mark.parametrize("inside", ["existence", "existence/000001.txt", "existence/000001.jpg", "celebrity/images"])
def test_links_out_of_the_folder_are_followed_if_that_is_allowed(tmp_path, root, inside):
    expected, link = read_mme(root), root / inside
    link.rename(tmp_path / "outside")
    link.symlink_to(tmp_path / "outside")
    assert read_tasks(task_of(mme=root, outside=True), "unused") == read_mme(root, outside=True) == expected
    (root / "existence" / "000009.txt").symlink_to("000009.txt")
    save_picture(root / "existence" / "000009.jpg")
    with pytest.raises(DataError, match=r"000009\.txt is a link that leads back to itself; remove it\.$"):
        read_mme(root, outside=True)


def test_names_that_are_not_utf_8_are_refused_before_answers_are_made(root):
    strange = os.fsdecode(b"\xff")
    for ending in (".txt", ".jpg"):
        (root / "existence" / f"000001{ending}").rename(root / "existence" / f"{strange}{ending}")
    said = "the file system has a name for it that is not UTF-8; rename it."
    assert refusal(root) == f"{str(root / 'existence' / strange)!a}"[:-1] + f".txt': {said}"
    (root / "existence").rename(root / strange)
    assert refusal(root) == f"{str(root / strange)!a}: {said}"


def test_a_folder_that_cannot_be_listed(root, monkeypatch):
    def failing(path):
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(path))

    monkeypatch.setattr(Path, "iterdir", failing)
    assert refusal(root) == f"{root} cannot be read (Permission denied); check the folder."


def test_links_inside_are_followed_and_loops_refused(tmp_path, root):
    (tmp_path / "linked").symlink_to(root)
    (root / "count").symlink_to("existence")
    assert read_mme(tmp_path / "linked")["count"][0].id == "count/000001.jpg/1"
    (root / "existence" / "000009.txt").symlink_to("000009.txt")
    save_picture(root / "existence" / "000009.jpg")
    assert refusal(root).endswith("count/000009.txt is a link that leads back to itself; remove it.")
