"""Stored verdicts: the key of a judgement in an evaluation's directory, and reading them without a model."""

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path

from mixlora.common.errors import CheckpointError
from mixlora.evaluation.config import JudgeSection
from mixlora.evaluation.folder import HASH
from mixlora.evaluation.lines import whole_lines
from mixlora.evaluation.predictions import Prediction


def question_key(section: JudgeSection, one: Prediction) -> str:
    """The key of a judgement: a hash of everything that it depends on."""
    words = [*section.identity, one.question_id, one.prompt, one.predict, one.target, *one.references]
    return hashlib.sha256(json.dumps(words).encode()).hexdigest()[:HASH]


def verdicts(file: Path, section: JudgeSection, found: Sequence[Prediction]) -> list[bool | None]:
    """The verdict on each prediction, from a file of judgements.

    Raises:
        CheckpointError: the judge has not judged all of them.
    """
    known = {str(record.get("asked")): record.get("verdict") for record in whole_lines(file)}
    keys = [question_key(section, one) for one in found]
    if missing := sum(key not in known for key in keys):
        raise CheckpointError(
            f"{file} lacks {missing} of {len(keys)} judgements by {section.model:.200}; evaluate again"
        )
    return [known[key] for key in keys]
