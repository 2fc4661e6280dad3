"""The check of all data: lengths of what is fine, a word about each that is not, and no picture kept."""

import io
import os
import threading
from collections import Counter

import pytest
from PIL import Image

from mixlora.common.errors import DataError, MixLoraError
from mixlora.data import checking
from mixlora.data.checking import as_error, check, fingerprint
from mixlora.data.collation import Collator
from mixlora.data.examples import Example
from mixlora.data.images import open_image
from tests.support.records import save_picture
from tests.support.small_processors import CHATML, byte_level, example, llava, picture, words, written_by


def cut_off(path):
    """A picture whose header is whole and whose pixels are not."""
    Image.frombytes("RGB", (64, 64), os.urandom(64 * 64 * 3)).save(path)
    path.write_bytes(path.read_bytes()[:2000])
    return path


def embedded(path) -> Image.Image:
    """A picture as a parquet record holds it."""
    return Image.open(io.BytesIO(path.read_bytes()))


@pytest.fixture
def collator():
    return Collator(llava(byte_level(), CHATML))


@pytest.mark.parametrize("threads", [1, 3])
def test_lengths_of_the_good_and_words_about_the_bad_in_order(tmp_path, collator, threads):
    whole, broken = save_picture(tmp_path / "a.png", (60, 50)), cut_off(tmp_path / "b.png")
    given = [
        example("What?", "Paris is shown", image=whole),
        example("What?", "no", image=broken),
        example("What?", "no", tools=({"name": "f"},)),
        example("What?", "no", image=embedded(broken)),
        example("What?", "yes", image=picture()),
        example("What?", "no", image=broken),
        example("What is shown?", "is"),
    ] * 4
    given = [Example(str(k), e.task, e.turns, e.images, f"f:{k}", tools=e.tools) for k, e in enumerate(given)]
    problems: list[DataError] = []
    done = []
    found = check(given, collator, problems, threads=threads, progress=lambda now, all_: done.append((now, all_)))
    assert found.examples == [given[k] for k in range(28) if k % 7 in (0, 4, 6)]
    assert found.lengths == [len(collator.encode(e).input_ids) for e in found.examples]
    assert found.bad == [k for k in range(28) if k % 7 in (1, 2, 3, 5)]
    assert found.cut.total() == 0
    assert done == [(k, 28) for k in range(1, 29)]
    told = [str(problem) for problem in problems]
    assert [text.split(": ")[0] for text in told] == [f"f:{k}" for k in found.bad]
    assert told[0].startswith(f"f:1: the image {broken} cannot be used (") and "f:2: the record has tools" in told[1]
    assert told[2].startswith("f:3: the image in the record cannot be used (")
    assert all(problem.__traceback__ is None and problem.__cause__ is None for problem in problems)


def test_the_words_are_those_of_the_step_that_would_fail(tmp_path, collator):
    given = example("What?", "no", image=cut_off(tmp_path / "b.png"))
    problems: list[DataError] = []
    check([given], collator, problems)
    with pytest.raises(DataError) as error:
        collator([given])
    assert [str(problem) for problem in problems] == [str(error.value)]


def test_without_decoding_only_headers_are_read(tmp_path, collator):
    (tmp_path / "c.png").write_text("no picture")
    given = [example("What?", "no", image=path) for path in (cut_off(tmp_path / "b.png"), tmp_path / "c.png")]
    problems: list[DataError] = []
    found = check(given, collator, problems, decode=False)
    assert (found.examples, found.bad, len(problems)) == (given[:1], [1], 1)


def test_answers_that_max_length_cuts():
    collator = Collator(words(), 9, written_by(words(), CHATML))
    problems: list[DataError] = []
    given = [example("What?", "Paris. Yes"), example("What is it? What?", "Yes"), example("What?", "Paris")]
    found = check(given, collator, problems)
    assert (found.lengths, found.bad, found.cut.total()) == ([9, 9], [1], 1)
    assert "max_length 9 cuts off the whole answer of example '7'" in str(problems[0])


def test_nothing_to_check_has_no_lengths(collator):
    assert check([], collator, []) == checking.Checked([], [], [], Counter(), Counter())


def test_embedded_pictures_stay_encoded(tmp_path, collator):
    save_picture(tmp_path / "a.png", (64, 48), color=(0, 0, 250))
    given = [example("What?", "no", image=embedded(tmp_path / "a.png")) for _ in range(3)]
    problems: list[DataError] = []
    assert len(check(given, collator, problems).examples) == 3 and problems == []
    assert all(e.images[0].fp is not None and e.images[0]._im is None for e in given)
    assert open_image(given[0]).getpixel((63, 47)) == (0, 0, 250)
    assert given[0].images[0].fp is not None


def test_a_picture_of_several_questions_is_decoded_once_and_few_at_a_time(tmp_path, collator, monkeypatch):
    paths = [save_picture(tmp_path / f"{k}.png") for k in range(40)]
    given = [example("What?", "no", image=path) for path in paths for _ in range(2)]
    lock, open_now, most, opened = threading.Lock(), 0, 0, []

    def counted(one, number):
        nonlocal open_now, most
        with lock:
            open_now += 1
            most = max(most, open_now)
            opened.append(one.images[number])
        try:
            return open_image(one, number)
        finally:
            with lock:
                open_now -= 1

    monkeypatch.setattr(checking, "open_image", counted)
    ahead = []
    check(given, collator, [], threads=2, progress=lambda now, _: ahead.append(len(set(opened)) - now / 2))
    assert sorted(opened) == sorted(paths)
    assert most <= 2 and max(ahead) <= 2 * 4 + 1


def test_pictures_in_memory_are_not_given_to_threads(collator, monkeypatch):
    shared = picture()
    seen = []
    monkeypatch.setattr(checking, "open_image", lambda *_: seen.append(threading.current_thread()))
    check([example("What?", "no", image=shared)] * 2, collator, [], threads=2)
    assert seen == [threading.main_thread()] * 2


def test_what_is_wrong_with_the_model_is_raised(collator):
    with pytest.raises(MixLoraError, match="threads is 0; give at least 1"):
        check([], collator, [], threads=0)
    problems: list[DataError] = []
    with pytest.raises(MixLoraError, match="does not render a user turn and an assistant turn"):
        check([example("What?", "is")] * 50, Collator(words(), template=written_by(words(), "{{ 'x' }}")), problems)
    assert problems == []


# --- the report ---


def test_a_report_lists_twenty_and_counts_all():
    text = str(as_error([DataError(f"f:{k}: bad.") for k in range(23)]))
    lines = text.split("\n")
    assert lines[0] == "23 records cannot be used; correct or remove these:"
    assert lines[1:] == [f"  f:0: bad. Also at {', '.join(f'f:{k}' for k in range(1, 20))}.", "  and 3 more"]


def test_a_report_has_a_line_for_each_of_a_few_problems():
    problems = [DataError(f"f:{k}: bad.") for k in range(3)] + [DataError("g:1: other: worse."), DataError("no place")]
    assert str(as_error(problems)).split("\n")[1:] == [
        *(f"  f:{k}: bad." for k in range(3)),
        "  g:1: other: worse.",
        "  no place",
    ]


def test_a_record_that_several_tasks_read_counts_once():
    problems = [DataError("f:1: bad."), DataError("f:1: bad."), DataError("f:2: bad.")]
    assert str(as_error(problems)) == ("2 records cannot be used; correct or remove these:\n  f:1: bad.\n  f:2: bad.")
    assert str(as_error(problems[:2])) == "f:1: bad."
    assert "more" not in str(as_error([DataError(f"f:{k}: bad.") for k in range(20)]))


def test_a_fingerprint_is_of_the_content_of_pictures_wherever_they_are(tmp_path):
    for name, colour in (("a", (255, 0, 0)), ("moved", (255, 0, 0)), ("other", (0, 255, 0))):
        Image.new("RGB", (8, 8), colour).save(tmp_path / f"{name}.bmp")
    assert len({(tmp_path / f"{name}.bmp").stat().st_size for name in ("a", "other")}) == 1
    a, moved, other = (
        fingerprint([example("What?", "yes", image=tmp_path / f"{name}.bmp")]) for name in ("a", "moved", "other")
    )
    assert a == moved != other
    (tmp_path / "a.bmp").write_bytes((tmp_path / "other.bmp").read_bytes())
    assert fingerprint([example("What?", "yes", image=tmp_path / "a.bmp")]) == other
    (tmp_path / "a.bmp").unlink()
    with pytest.raises(DataError, match="a picture cannot be read: No such file"):
        fingerprint([example("What?", "yes", image=tmp_path / "a.bmp")])
