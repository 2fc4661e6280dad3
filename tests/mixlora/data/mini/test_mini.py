"""The mini suite's tasks and pictures: what holds of them without any model."""

import subprocess
import sys
from collections import Counter
from hashlib import sha256
from itertools import islice

import numpy as np
import pytest
from PIL import Image

from mixlora.common.errors import DataError
from mixlora.data import mini
from mixlora.data.examples import Example
from mixlora.data.mini import draw, pictures

ALL = {**mini.TASKS, **mini.UNSEEN}


def fingerprint(image: Image.Image) -> str:
    return sha256(image.tobytes()).hexdigest()


def said(examples: list[Example]) -> list[tuple[str, str, str]]:
    return [(one.id, one.turns[0].text, one.turns[1].text) for one in examples]


def test_six_tasks_for_the_capabilities_and_seven_for_the_evaluation_sets():
    assert {name: task.capability for name, task in mini.TASKS.items()} == {
        "next_number": "complex reasoning",
        "name_shape": "coarse perception",
        "name_ink": "fine-grained perception",
        "name_in_french": "knowledge",
        "read_word": "OCR",
        "font_style": "domain",
    }
    assert list(mini.UNSEEN) == ["sign", "spatial", "entailment", "shape_colour", "letter", "digit", "presence"]
    assert [task.chance for task in mini.TASKS.values()] == [0.1, 1 / 3, 0.125, 0.1, 0.125, 0.2]
    assert [task.chance for task in mini.UNSEEN.values()] == [0.5, 0.5, 1 / 3, 0.5, 0.5, 0.5, 0.5]
    assert all(task.definition.endswith(".") and len(task.definition) > 30 for task in ALL.values())


def test_importing_the_suite_imports_no_torch():
    code = "import sys; from mixlora.data import mini; mini.TASKS; print('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "False\n"


@pytest.mark.parametrize("task", ALL)
@pytest.mark.parametrize("split", ["train", "heldout"])
def test_the_same_arguments_give_the_same_examples(task, split):
    first, again = (mini.examples(task, split, 12, seed=3) for _ in range(2))
    assert said(first) == said(again)
    assert [fingerprint(one.images[0]) for one in first] == [fingerprint(one.images[0]) for one in again]
    assert said(first) != said(mini.examples(task, split, 12, seed=4))
    assert said(mini.examples(task, split, 5, seed=3)) == said(first)[:5]


@pytest.mark.parametrize("task", ALL)
def test_an_example_is_a_small_picture_a_question_and_an_allowed_answer(task):
    for one in mini.examples(task, "train", 60):
        assert one.images[0].size == (48, 48)
        assert one.images[0].mode == "RGB"
        assert one.task == task
        assert [turn.role for turn in one.turns] == ["user", "assistant"]
        assert one.turns[1].text in ALL[task].answers


@pytest.mark.parametrize("task", ALL)
def test_ids_are_unique_within_a_task(task):
    ids = [one.id for one in mini.examples(task, "heldout", 200)]
    assert len(set(ids)) == 200


@pytest.mark.parametrize("task", ALL)
def test_answers_are_spread_evenly_enough_for_no_constant_answer_to_beat_chance(task):
    counts = Counter(one.turns[1].text for one in mini.examples(task, "heldout", 400))
    assert set(counts) == set(ALL[task].answers)
    share, chance = counts.most_common(1)[0][1] / 400, 1 / len(ALL[task].answers)
    assert share < chance + 4 * (chance * (1 - chance) / 400) ** 0.5


def test_both_stroop_tasks_show_the_same_pictures_and_want_different_words():
    inks, words = (mini.examples(task, "train", 200, seed=5) for task in ("name_ink", "read_word"))
    assert [one.id for one in inks] == [one.id for one in words]
    assert [fingerprint(one.images[0]) for one in inks] == [fingerprint(one.images[0]) for one in words]
    assert all(ink.turns[1].text != word.turns[1].text for ink, word in zip(inks, words, strict=True))
    assert mini.TASKS["name_ink"].answers == mini.TASKS["read_word"].answers
    questions = [{one.turns[0].text for one in some} for some in (inks, words)]
    assert len(questions[0]) == len(questions[1]) == 2
    assert not questions[0] & questions[1]


def test_the_ink_of_a_stroop_picture_is_the_one_its_facts_tell():
    for one in mini.examples("name_ink", "train", 40):
        pixels = np.asarray(one.images[0], dtype=float).reshape(-1, 3)
        darkest = pixels[np.argsort(pixels.min(axis=1))[:12]].mean(axis=0)
        nearest = min(draw.INKS, key=lambda name: float(np.abs(darkest - draw.INKS[name]).sum()))
        assert nearest == one.turns[1].text


def test_words_are_drawn_in_real_fonts_and_each_style_looks_its_own():
    assert {draw.font(face, 20).getname()[0] for faces in draw.FONTS.values() for face in faces} == {
        *("DejaVu Sans", "DejaVu Sans Mono", "DejaVu Serif", "STIXGeneral"),
        *("cmr10", "cmss10", "cmti10", "cmtt10"),
    }
    styles = {style: draw.font(faces[0], 20).getname()[1] for style, faces in draw.FONTS.items()}
    assert styles == {"sans": "Book", "serif": "Book", "mono": "Book", "bold": "Bold", "italic": "Oblique"}
    assert draw.font("DejaVuSansMono", 20).getlength("il") == draw.font("DejaVuSansMono", 20).getlength("mw")


@pytest.mark.parametrize("source", pictures.SOURCES)
def test_train_and_heldout_share_no_picture(source):
    splits = [
        {fingerprint(one.image) for seed in (0, 1) for one in islice(pictures.SOURCES[source](split, seed), 600)}
        for split in ("train", "heldout")
    ]
    assert min(map(len, splits)) >= 450
    assert not splits[0] & splits[1]


def test_digits_and_easy_vqa_come_as_they_ship():
    counts = {
        task: [len(mini.examples(task, split, 10**6)) for split in ("train", "heldout")]
        for task in ("digit", "shape_colour")
    }
    assert counts == {"digit": [1347, 450], "shape_colour": [3542, 880]}
    assert {one.id for one in mini.examples("digit", "heldout", 500)} == {f"digit-{4 * n}" for n in range(450)}


def test_reasoning_and_knowledge_agree_with_the_digit():
    shown = {one.id: one.turns[1].text for one in mini.examples("digit", "heldout", 100)}
    following = {one.id: one.turns[1].text for one in mini.examples("next_number", "heldout", 100)}
    french = {one.id: one.turns[1].text for one in mini.examples("name_in_french", "heldout", 100)}
    assert {(shown[key], following[key]) for key in shown} >= {("nine", "ten"), ("zero", "one"), ("four", "five")}
    assert {(shown[key], french[key]) for key in shown} >= {("nine", "neuf"), ("zero", "zéro"), ("seven", "sept")}


def test_an_unknown_task_or_split_names_the_known_ones():
    with pytest.raises(DataError, match=r"has no task 'ocr'; it has next_number, name_shape, .*presence\.$"):
        mini.examples("ocr", "train", 1)
    with pytest.raises(DataError, match=r"has no split 'test'; it has train, heldout\.$"):
        mini.examples("name_ink", "test", 1)


def test_a_missing_easy_vqa_names_the_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "easy_vqa", None)
    with pytest.raises(DataError, match=r"pip install 'task-interference\[demo\]'"):
        mini.examples("name_shape", "train", 1)
