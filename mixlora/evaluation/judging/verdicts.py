"""Stored verdicts: the key of a judgement in an evaluation's directory, and reading them without a model."""

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path

from mixlora.common.errors import CheckpointError
from mixlora.evaluation.folder import HASH
from mixlora.evaluation.lines import whole_lines
from mixlora.evaluation.predictions import Prediction


def question_key(judge: Sequence[str], one: Prediction) -> str:
    """The key of a judgement: a hash of everything that it depends on.

    Args:
        judge: what verdicts depend on besides the texts, as `run.identity` says it.
        one: what is judged.
    """
    words = [*judge, one.question_id, one.prompt, one.predict, one.target, *one.references]
    return hashlib.sha256(json.dumps(words).encode()).hexdigest()[:HASH]


def verdicts(
    file: Path, judge: Sequence[str], found: Sequence[Prediction], unsealed: bool = False
) -> list[bool | None]:
    """The verdict on each prediction, from a file of judgements.

    Args:
        file: the file.
        judge: as in `question_key`.
        found: what was judged.
        unsealed: whether lines without checksums are read, as earlier versions wrote them.

    Raises:
        CheckpointError: the judge has not judged all of them, or the file is damaged.
    """
    known = {str(record.get("asked")): record.get("verdict") for record in whole_lines(file, unsealed)}
    keys = [question_key(judge, one) for one in found]
    if missing := sum(key not in known for key in keys):
        raise CheckpointError(f"{file} lacks {missing} of {len(keys)} judgements by its judge; evaluate again")
    return [known[key] for key in keys]
