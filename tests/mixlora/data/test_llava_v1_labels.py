"""LLaVA v1's tokens, labels and square pictures, against its own preprocessing written out again, step by step."""

import numpy as np
import pytest
from PIL import Image

from mixlora.common.labels import IGNORED
from mixlora.data.collation import Collator
from mixlora.data.examples import Example, Turn, pictures_first
from mixlora.data.templates import LLAVA_V1, named_template
from tests.support.small_processors import LLAVA_SYSTEM, llava, metaspace, picture, written_by

FEATURES = 9
"""Placeholders of a picture of 48 px in patches of 16."""


def pieces(tokenizer, text, features):
    """Tokens of a text whose chunks around pictures are tokenized apart, the BOS of all but the first left out."""
    first, *others = (tokenizer(chunk).input_ids for chunk in text.split("<image>"))
    found = list(first)
    for chunk in others:
        found += [tokenizer.convert_tokens_to_ids("<image>")] * features + chunk[1:]
    return found


def preprocessed(tokenizer, turns, features):
    """Tokens and labels as LLaVA's preprocess_v1 makes them of (question, answer) pairs."""
    prompt = LLAVA_SYSTEM + " "
    for asked, said in turns:
        prompt += f"USER: {asked} ASSISTANT: {said}</s>"
    ids = pieces(tokenizer, prompt, features)
    labels = list(ids)
    labels[:1] = [IGNORED]
    at = 1
    for number, part in enumerate(prompt.split("</s>")):
        if not part:
            break
        asked = part.split("ASSISTANT: ")[0] + "ASSISTANT: "
        length = len(pieces(tokenizer, part, features if number == 0 else 0))
        instruction = len(pieces(tokenizer, asked, features if number == 0 else 0)) - 2
        labels[at : at + instruction] = [IGNORED] * instruction
        at += length
    assert at == len(ids)
    return ids, labels


@pytest.mark.parametrize("seeing", [False, True])
@pytest.mark.parametrize("count", [1, 2, 3])
def test_tokens_and_labels_are_llavas(count, seeing):
    tokenizer = metaspace()
    pairs = [("What is shown?", "Paris is shown."), ("Is it?", "u"), ("And the user?", "the user is")][:count]
    turns = tuple(turn for asked, said in pairs for turn in (Turn("user", asked), Turn("assistant", said)))
    processor = llava(tokenizer) if seeing else tokenizer
    collator = Collator(processor, template=written_by(processor, named_template(LLAVA_V1)[0]))
    images = (picture(),) if seeing else ()
    found = collator.encode(Example("1", "t", pictures_first(turns, len(images)), images, "f:1"))
    if seeing:
        pairs[0] = (f"<image>\n{pairs[0][0]}", pairs[0][1])
    assert (found.input_ids, found.labels) == preprocessed(tokenizer, pairs, FEATURES)


def test_a_picture_behind_the_question_is_put_first_as_llava_does():
    tokenizer = metaspace()
    processor = llava(tokenizer)
    collator = Collator(processor, template=written_by(processor, named_template(LLAVA_V1)[0]))
    turns = (Turn("user", "What is shown? ", places=(15,)), Turn("assistant", "Paris"))
    found = collator.encode(Example("1", "t", turns, (picture(),), "f:1"))
    expected = preprocessed(tokenizer, [("<image>\nWhat is shown?", "Paris")], FEATURES)
    assert (found.input_ids, found.labels) == expected


@pytest.mark.parametrize("size", [(60, 20), (20, 60), (30, 30), (31, 50)])
def test_pictures_are_padded_to_a_square_pixel_by_pixel(size):
    generator = np.random.default_rng(0)
    pixels = generator.integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    colour = (122, 116, 104)
    processor = llava(metaspace())
    seen = []
    own = processor.image_processor

    def spied(images, **options):
        seen.extend(image for row in images for image in (row if isinstance(row, list) else [row]))
        return own(images, **options)

    processor.image_processor = type("Spy", (type(own),), {"__call__": lambda self, images, **o: spied(images, **o)})(
        size={"shortest_edge": 48}, crop_size={"height": 48, "width": 48}
    )
    template = written_by(processor, named_template(LLAVA_V1)[0])
    collator = Collator(processor, template=template, square=colour)
    turns = (Turn("user", "What?", places=(0,)), Turn("assistant", "Paris"))
    encoded = collator.encode(Example("1", "t", turns, (Image.fromarray(pixels),), "f:1"))
    seen.clear()
    collator.collate([encoded])
    side = max(size)
    expected = np.empty((side, side, 3), np.uint8)
    expected[:] = colour
    top, left = (side - size[1]) // 2, (side - size[0]) // 2
    expected[top : top + size[1], left : left + size[0]] = pixels
    assert np.array_equal(np.asarray(seen[-1]), expected)
