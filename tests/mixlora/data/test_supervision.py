"""Tokens and labels are those of TRL's SFTTrainer, under every template that TRL ships and for every form of record."""

import json

import pytest
from datasets import Dataset, disable_caching
from transformers import LlamaConfig, LlamaForCausalLM
from trl import SFTConfig, SFTTrainer
from trl.chat_template_utils import get_training_chat_template, supports_tool_calling

from mixlora.common.errors import DataError
from mixlora.data.collation import Collator
from mixlora.data.examples import Example, Form, LossOn, Turn, with_values
from mixlora.data.templates import known_to_trl
from tests.support.small_processors import byte_level, templated

disable_caching()
CONVERSATIONS = {
    "one turn": [("user", "What is it?"), ("assistant", "Paris is it.")],
    "several": [("user", "Q one"), ("assistant", "First."), ("user", "More"), ("assistant", "Second thing")],
    "system": [("system", "Be brief."), ("user", "Q"), ("assistant", "A long answer")],
    "empty system": [("system", ""), ("user", "Q"), ("assistant", "A long answer")],
    "h": [("user", "Q"), ("assistant", "h")],
    "hi": [("user", "Q"), ("assistant", "hi"), ("user", "then?"), ("assistant", "h")],
    "a": [("user", "Pick"), ("assistant", "a")],
}
CALL = {"type": "function", "function": {"name": "look_up", "arguments": {"town": "Paris"}}}
TOOLS = [
    {
        "type": "function",
        "function": {
            "name": "look_up",
            "description": "Looks a town up.",
            "parameters": {"type": "object", "properties": {"town": {"type": "string"}}},
        },
    }
]
PARTED = ("idefics3", "llava_next", "smolvlm")
"""Templates of processors, whose messages are lists of parts: test_processors.py has them."""
TEXTUAL = [name for name in known_to_trl() if name not in PARTED]


@pytest.fixture(scope="module")
def model():
    shape = {"hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1, "num_attention_heads": 1}
    return LlamaForCausalLM(LlamaConfig(vocab_size=800, **shape))


def trained_on(model, tokenizer, records, folder, **settings):
    """What SFTTrainer makes of records: (tokens, labels) of each; None where it refuses them."""
    arguments = SFTConfig(str(folder), report_to=[], use_cpu=True, max_length=None, **settings)
    try:
        trainer = SFTTrainer(model, arguments, train_dataset=Dataset.from_list(records), processing_class=tokenizer)
    except Exception:  # the template's own words, or TRL's on a template that it cannot train by
        return None
    return [(row["input_ids"], row["labels"]) for row in trainer.train_dataset]


def of(turns, **more) -> Example:
    return Example("1", "t", tuple(Turn(role, text) for role, text in turns), (), "f:1", **more)


def ours(tokenizer, example):
    try:
        found = Collator(tokenizer).encode(example)
    except DataError:
        return None
    return found.input_ids, found.labels


@pytest.mark.parametrize("loss_on", [LossOn.ANSWERS, LossOn.EVERYTHING])
@pytest.mark.parametrize("name", TEXTUAL)
def test_conversations_are_trls(name, loss_on, model, tmp_path):
    tokenizer = templated(known_to_trl()[name])
    answers = loss_on is LossOn.ANSWERS
    known = not answers or _trainable(tokenizer)
    for turns in CONVERSATIONS.values():
        rows = [{"messages": [{"role": role, "content": text} for role, text in turns]}]
        expected = trained_on(model, tokenizer, rows, tmp_path, assistant_only_loss=answers) if known else None
        found = ours(tokenizer, of(turns, loss_on=loss_on))
        if known:
            assert [found] == (expected or [None])
        else:  # without generation markers: by prefixes of the whole, or not at all
            assert found is None or (tokenizer.decode([t for t in found[1] if t >= 0]).count(turns[-1][1]) >= 1)


def _trainable(tokenizer) -> bool:
    try:
        get_training_chat_template(tokenizer)
    except ValueError:
        return False
    return True


@pytest.mark.parametrize("name", [name for name in TEXTUAL if _trainable(templated(known_to_trl()[name]))])
def test_tools_are_trls_or_are_refused(name, model, tmp_path):
    tokenizer = templated(known_to_trl()[name])
    messages = [
        {"role": "user", "content": "Where is it?"},
        {"role": "assistant", "content": "", "tool_calls": [CALL]},
        {"role": "tool", "name": "look_up", "content": "42 N"},
        {"role": "assistant", "content": "It is in the north."},
    ]
    more = [{key: one[key] for key in ("tool_calls", "name") if key in one} for one in messages]
    turns = tuple(Turn(one["role"], one["content"], more=own) for one, own in zip(messages, more, strict=True))
    found = ours(tokenizer, Example("1", "t", turns, (), "f:1", tools=tuple(TOOLS)))
    if supports_tool_calling(tokenizer):
        rows = [{"messages": messages, "tools": json.dumps(TOOLS)}]
        assert [found] == trained_on(model, tokenizer, rows, tmp_path, assistant_only_loss=True)
    else:
        assert found is None


@pytest.mark.parametrize("bos", [True, False])
@pytest.mark.parametrize("loss_on", [LossOn.ANSWERS, LossOn.EVERYTHING])
@pytest.mark.parametrize(
    ("prompt", "completion"),
    [
        ("2+0=", " 2"),
        ("What is it? ", "Paris"),
        ("Q", "a</s>"),
        ("<s>user\nQ</s>\n<s>assistant\n", "a</s>\n"),
    ],
)
def test_plain_prompts_and_completions_are_trls(prompt, completion, loss_on, bos, model, tmp_path):
    tokenizer = byte_level(bos=bos)
    answers = loss_on is LossOn.ANSWERS
    rows = [{"prompt": prompt, "completion": completion}]
    expected = trained_on(model, tokenizer, rows, tmp_path, completion_only_loss=answers)
    example = of([("user", prompt), ("assistant", completion)], form=Form.PLAIN, loss_on=loss_on)
    assert [ours(tokenizer, example)] == expected


@pytest.mark.parametrize("loss_on", [LossOn.ANSWERS, LossOn.EVERYTHING])
@pytest.mark.parametrize("name", ["qwen3", "llama3", "gemma3", "qwen2_5", "gptoss"])
def test_prompts_and_completions_of_messages_are_trls(name, loss_on, model, tmp_path):
    tokenizer = templated(known_to_trl()[name])
    before, after = [("user", "What is it?")], [("assistant", "hi")]
    parts = {"prompt": before, "completion": after}
    rows = [{key: [{"role": r, "content": t} for r, t in turns] for key, turns in parts.items()}]
    expected = trained_on(model, tokenizer, rows, tmp_path, completion_only_loss=loss_on is LossOn.ANSWERS)
    example = of([*before, *after], form=Form.COMPLETION, prompt_turns=1, loss_on=loss_on)
    assert expected is not None and [ours(tokenizer, example)] == expected


@pytest.mark.parametrize("text", ["### Q 0 ### A 0", "<s>user\nQ</s>\n<s>assistant\nA</s>", "<s>user\nQ</s>\n"])
@pytest.mark.parametrize("bos", [True, False])
def test_texts_are_trls(text, bos, model, tmp_path):
    """Also one that was rendered before: special tokens in it are the tokens."""
    tokenizer = byte_level(bos=bos)
    expected = trained_on(model, tokenizer, [{"text": text}], tmp_path)
    assert [ours(tokenizer, of([("assistant", text)], form=Form.TEXT))] == expected
    assert -100 not in expected[0][1] and tokenizer.eos_token_id in expected[0][0]


@pytest.mark.parametrize("name", ["qwen2_5", "qwen3", "qwen3_8", "glm4moe", "gptoss", "deepseekv3"])
def test_arguments_in_a_string_are_written_as_trl_does_or_else_as_values(name, model, tmp_path):
    tokenizer = templated(known_to_trl()[name])
    written = {**CALL, "function": {**CALL["function"], "arguments": json.dumps(CALL["function"]["arguments"])}}

    def rows(call):
        messages = [{"role": "user", "content": "Where?"}, {"role": "assistant", "content": "", "tool_calls": [call]}]
        trained = trained_on(
            model, tokenizer, [{"messages": messages, "tools": json.dumps(TOOLS)}], tmp_path, assistant_only_loss=True
        )
        turns = tuple(
            Turn(one["role"], one["content"], more={k: one[k] for k in ("tool_calls",) if k in one}) for one in messages
        )
        return trained, ours(tokenizer, Example("1", "t", turns, (), "f:1", tools=tuple(TOOLS)))

    expected, found = rows(written)
    assert [found] == (expected or rows(CALL)[0])
    deep = {**CALL, "function": {**CALL["function"], "arguments": "[" * 100_000}}
    turns = (Turn("user", "Where?"), Turn("assistant", "", more={"tool_calls": [deep]}))
    assert with_values(turns[1]) == turns[1]  # what is no JSON, or too deep, stays text
    ours(tokenizer, Example("1", "t", turns, (), "f:1", tools=tuple(TOOLS)))
