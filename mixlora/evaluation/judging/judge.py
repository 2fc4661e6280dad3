"""A judge: a language model that reads a question, its answer and a prediction, and says whether that is right.

It replaces a metric where right answers can be worded in many ways, as in Appendix C of the paper (with
Vicuna-1.5-13B). Scores depend on the judge: compare only models that the same judge has judged.
"""

import inspect
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoTokenizer, GenerationConfig

from mixlora.checkpoints.lengths import without_no_number
from mixlora.checkpoints.loading import LOAD_ERRORS, first_words, without_bars
from mixlora.common.errors import CheckpointError, ConfigError, DataError
from mixlora.common.files import read_text
from mixlora.data.collation import Collator, Encoded
from mixlora.data.examples import Example, Turn
from mixlora.data.groups import connected
from mixlora.data.templates import llava_v1, own_template
from mixlora.evaluation.predictions import Prediction
from mixlora.evaluation.scoring.intervals import Sample, Share, estimates
from mixlora.evaluation.scoring.metrics import Score, number

PROMPT = (
    "A model was asked a question about a picture. Decide whether its prediction is correct: it has to mean the same "
    "as the reference answer, in whatever words.\n\n"
    "Question: {question}\n\n"
    "Reference answer: {target}\n\n"
    "Prediction: {prediction}\n\n"
    "Is the prediction correct? Answer with Yes or No."
)
"""The judge's prompt. The wording is this project's own, not that of the paper's Appendix C."""

LEAST_CONFIDENCE = 0.1
"""P(Yes) + P(No) below which the judge did not answer the question; there is no verdict then."""
ANSWER_TOKENS = 8
"""The number of tokens that a judge generates: enough for a first word."""

LARGEST_PROMPT = 2**16
"""The largest file of a prompt, in bytes."""

_FIELDS = ("question", "target", "prediction")
_FIELD = re.compile("|".join(f"\\{{{name}\\}}" for name in _FIELDS))
_YES, _NO = "yes", "no"


class By(StrEnum):
    """How the judge's answer becomes a verdict.

    probability: P(Yes) / (P(Yes) + P(No)) of the first token of its answer.
    generation: the first word of its greedy answer, as in the paper.
    """

    PROBABILITY = "probability"
    GENERATION = "generation"


@dataclass(frozen=True)
class Judgement:
    """The judgement of one prediction.

    Attributes:
        question_id: the prediction's.
        verdict: whether the prediction is correct; None if the judge says neither Yes nor No.
        probability: of Yes against No; None if the answer was generated.
        confidence: P(Yes) + P(No), the rest being other words; None if the answer was generated.
        text: the generated answer; None if none was generated.
    """

    question_id: str
    verdict: bool | None
    probability: float | None = None
    confidence: float | None = None
    text: str | None = None


class Judge:
    """A causal language model that judges predictions.

    It reads `prompt` in its own chat template, or in Vicuna v1's if it has none. If there are several right answers
    (the target and the references), the prompt lists all and says that any one is enough. A space splits the judge's
    control tokens in these texts: a model's prediction cannot end the turn.

    Args:
        model: the language model, on its device.
        tokenizer: the model's fast tokenizer.
        by: how its answer becomes a verdict.
        batch_size: predictions judged at once; verdicts do not depend on it.
        max_length: the longest prompt in tokens; None for any length.
        prompt: the prompt, which contains {question}, {target} and {prediction}.

    Raises:
        ConfigError: an option is not allowed, or by=probability with a tokenizer whose first tokens of Yes and No are
            the same.
    """

    def __init__(
        self,
        model: Any,
        tokenizer: Any,
        by: By | str = By.PROBABILITY,
        batch_size: int = 8,
        max_length: int | None = None,
        prompt: str = PROMPT,
    ):
        if by not in list(By):
            raise ConfigError(f"by is {by!r}; it must be one of {', '.join(By)}")
        if batch_size < 1:
            raise ConfigError(f"batch_size is {batch_size}; it must be a whole number from 1")
        _check_prompt(prompt, "the judge's prompt")
        self.model, self.tokenizer = model, tokenizer
        self.by, self.batch_size, self.prompt = By(by), batch_size, prompt
        template = None if own_template(tokenizer) else llava_v1(tokenizer)
        self.collator = Collator(tokenizer, max_length, template)
        self._special = self.collator.encoder.special
        self._yes, self._no = answer_tokens(tokenizer) if self.by is By.PROBABILITY else ([], [])

    @classmethod
    def load(
        cls, path: str, dtype: str = "auto", device: str = "cpu", by: By | str = By.PROBABILITY, **options: Any
    ) -> "Judge":
        """A judge from a path or hub id; further options as in `Judge`.

        Raises:
            CheckpointError: there is no causal language model with a tokenizer, or the device cannot be used.
        """
        try:
            tokenizer = AutoTokenizer.from_pretrained(path, trust_remote_code=False)
            without_no_number(tokenizer)
            with without_bars():
                model: Any = AutoModelForCausalLM.from_pretrained(path, dtype=dtype, trust_remote_code=False)
            model = model.to(device)
        except LOAD_ERRORS as error:
            raise CheckpointError(f"the judge {path} cannot be loaded: {first_words(error)}") from None
        return cls(model, tokenizer, by, **options)

    def judge(self, predictions: Sequence[Prediction]) -> list[Judgement]:
        """The judgement of each prediction, in their order.

        Raises:
            DataError: a prediction has no right answer, or makes a prompt longer than `max_length`.
        """
        encoded = [self.collator.encode_prompt(self._example(one)) for one in predictions]
        order = sorted(range(len(encoded)), key=lambda index: len(encoded[index].input_ids))
        judge = self._by_probability if self.by is By.PROBABILITY else self._by_generation
        found: dict[int, Judgement] = {}
        with torch.inference_mode(), _evaluating(self.model):
            for start in range(0, len(order), self.batch_size):
                chosen = order[start : start + self.batch_size]
                found |= zip(chosen, judge([encoded[index] for index in chosen]), strict=True)
        return [found[index] for index in range(len(predictions))]

    def text(self, prediction: Prediction) -> str:
        """The prompt about a prediction, before the chat template."""
        answers = list(dict.fromkeys(a for a in (prediction.target, *prediction.references) if a.strip()))
        if not answers:
            raise DataError(f"{prediction.place} has an empty target and no references; give the right answers.")
        target = answers[0] if len(answers) == 1 else f"any one of: {'; '.join(answers)}"
        values = {"{question}": prediction.prompt, "{target}": target, "{prediction}": prediction.predict}
        question = _FIELD.sub(lambda found: values[found[0]], self.prompt)
        return self._special.sub(lambda found: f"{found[0][0]} {found[0][1:]}" if len(found[0]) > 1 else " ", question)

    def _example(self, prediction: Prediction) -> Example:
        turns = (Turn("user", self.text(prediction)), Turn("assistant", "Yes"))
        return Example(prediction.question_id, prediction.task, turns, (), prediction.place)

    def _batch(self, encoded: Sequence[Encoded]) -> dict[str, Tensor]:
        """Tokens and attention mask, padded on the left."""
        batch = self.collator.collate(encoded, padding="left")
        return {name: batch[name].to(self.model.device) for name in ("input_ids", "attention_mask")}

    def _by_probability(self, encoded: Sequence[Encoded]) -> Iterator[Judgement]:
        batch = self._batch(encoded)
        positions = (batch["attention_mask"].cumsum(-1) - 1).clamp(min=0)  # positions without the padding
        extra = {"position_ids": positions, "logits_to_keep": 1}
        known = inspect.signature(self.model.forward).parameters
        logits = self.model(**batch, **{name: value for name, value in extra.items() if name in known}).logits[:, -1]
        probabilities = logits.float().softmax(-1)
        yes, no = (probabilities[:, tokens].sum(-1).tolist() for tokens in (self._yes, self._no))
        for item, p, q in zip(encoded, yes, no, strict=True):
            probability = p / (p + q) if p + q > 0 else None
            verdict = p > q if p + q >= LEAST_CONFIDENCE else None
            yield Judgement(item.id, verdict, probability=probability, confidence=p + q)

    def _by_generation(self, encoded: Sequence[Encoded]) -> Iterator[Judgement]:
        batch = self._batch(encoded)
        pad = self.tokenizer.pad_token_id
        eos = self.model.generation_config.eos_token_id
        eos = self.tokenizer.eos_token_id if eos is None else eos
        greedy = GenerationConfig(
            max_new_tokens=ANSWER_TOKENS,
            do_sample=False,
            eos_token_id=eos,
            pad_token_id=self.tokenizer.eos_token_id if pad is None else pad,
        )
        made = self.model.generate(**batch, generation_config=greedy)[:, batch["input_ids"].shape[1] :]
        for item, text in zip(encoded, self.tokenizer.batch_decode(made, skip_special_tokens=True), strict=True):
            yield Judgement(item.id, verdict_of(text), text=text)


def read_prompt(file: str | None) -> str:
    """The prompt of a file, without white space around it; `PROMPT` if there is none.

    Raises:
        ConfigError: the file cannot be read, or lacks a field.
    """
    if file is None:
        return PROMPT
    try:
        prompt = read_text(Path(file), LARGEST_PROMPT).strip()
    except (OSError, ValueError) as error:
        why = getattr(error, "strerror", None) or "it is not text in UTF-8"
        raise ConfigError(f"judge.prompt: {file} cannot be read: {why}; name a text file") from None
    _check_prompt(prompt, f"judge.prompt: {file}")
    return prompt


def _check_prompt(prompt: str, name: str) -> None:
    if missing := [f"{{{field}}}" for field in _FIELDS if f"{{{field}}}" not in prompt]:
        raise ConfigError(f"{name} has no {missing[0]}; it needs all of {', '.join(f'{{{each}}}' for each in _FIELDS)}")


def verdict_of(text: str) -> bool | None:
    """True if the first word of an answer is Yes, False if it is No; None for any other word or none."""
    word = re.match(r"[\W_]*([^\W_]*)", text)
    return {_YES: True, _NO: False}.get(word[1].lower()) if word else None


def answer_tokens(tokenizer: Any) -> tuple[list[int], list[int]]:
    """The tokens that begin the answer Yes, and those that begin the answer No.

    They are all tokens that are the word, in any case and with spaces or punctuation around it; if the vocabulary has
    none, the first token of the word.

    Raises:
        ConfigError: if Yes and No start with the same token, or with an unknown one.
    """
    texts = tokenizer.batch_decode([[token] for token in range(len(tokenizer))])
    found: dict[str, list[int]] = {_YES: [], _NO: []}
    for token, text in enumerate(texts):
        word = re.sub(r"[\W_]", "", text).lower()
        if word in found:
            found[word].append(token)
    for word, tokens in found.items():
        start = tokenizer(word.capitalize(), add_special_tokens=False)["input_ids"][:1]
        tokens.extend(token for token in start if not tokens and token != tokenizer.unk_token_id)
    if not found[_YES] or not found[_NO] or set(found[_YES]) & set(found[_NO]):
        raise ConfigError("the judge's tokenizer has no first token that tells Yes from No; use judge.by: generation")
    return found[_YES], found[_NO]


def judge_score(
    judgements: Sequence[Judgement], draws: int = 1000, seed: int = 0, groups: Sequence[str | None] | None = None
) -> Score:
    """The share of predictions judged correct, with its 95% interval; one without a verdict counts as wrong.

    Args:
        judgements: of one task.
        draws: bootstrap resamples.
        seed: seed of the resamples.
        groups: the group of each prediction, resampled together; None for predictions that are independent.

    Raises:
        DataError: there is no judgement.
    """
    if not judgements:
        raise DataError("There are no judgements to sum up; give at least one.")
    credit = np.array([one.verdict is True for one in judgements], dtype=np.float64)
    together = np.array(connected([] if one is None else [one] for one in groups or [None] * len(credit)))
    sample = Sample(np.stack([np.ones_like(credit), credit], axis=1), together)
    unparsed = sum(one.verdict is None for one in judgements)
    values = estimates(sample, {"accuracy": Share(1, 0)}, draws, seed)
    return Score("judge", len(judgements), number(together), unparsed, "accuracy", values)


@contextmanager
def _evaluating(model: Any) -> Iterator[None]:
    """Put the model into evaluation mode inside the block, and restore its mode afterwards."""
    training = model.training
    model.eval()
    try:
        yield
    finally:
        model.train(training)
