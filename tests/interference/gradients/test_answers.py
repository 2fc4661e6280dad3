"""An answer is exact where greedy decoding would give it: against generate."""

import pytest

from interference.gradients.losses import exact_answers
from tests.support.models import batch, llama, lora

LENGTHS, ANSWERS = [12, 7, 9, 12], [3, 1, 5, 4]


@pytest.mark.parametrize("changed", [[], [0, 2]])
def test_an_answer_is_exact_where_greedy_decoding_gives_it(changed):
    """Answers are the model's own continuations; the last token of some is another."""
    model, data = lora(llama()).eval(), batch(LENGTHS, ANSWERS)
    model.generation_config.eos_token_id = None
    for row, (length, count) in enumerate(zip(LENGTHS, ANSWERS, strict=True)):
        prompt = data["input_ids"][row : row + 1, : length - count]
        own = model.generate(input_ids=prompt, max_new_tokens=count, do_sample=False)[0, length - count :]
        own[-1] = (own[-1] + 1) % 50 if row in changed else own[-1]
        data["input_ids"][row, length - count : length] = data["labels"][row, length - count : length] = own
    assert exact_answers(model, data).tolist() == [float(row not in changed) for row in range(4)]
