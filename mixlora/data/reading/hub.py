"""Data sets of the hub, by their id. They are downloaded by `datasets`, to its own cache."""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from mixlora.common.errors import DataError
from mixlora.common.files import exists
from mixlora.data.reading.directories import records_of_dataset
from mixlora.data.reading.formats import Problems, has_ending
from mixlora.data.reading.unpacking import Allowance
from mixlora.data.reading.values import Record

_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[\w.-]+(:[\w.-]+)?")
"""ORGANISATION/NAME, and behind a colon the configuration of a data set that has several."""
_SECONDS = 10
"""How long the hub may take to answer."""


def is_id(name: str) -> bool:
    """Whether a name is the id of a data set rather than a path: "org/name", and there is no folder "org"."""
    return bool(_ID.fullmatch(name)) and not has_ending(name) and not exists(Path(name).parent)


def read_dataset(name: str, split: str | None, allowance: Allowance, problems: Problems) -> Iterator[Record]:
    """The records of a data set of the hub.

    Args:
        name: its id, as "openai/gsm8k:main".
        split: which of its splits; None where it has only one.
        allowance: how many bytes may be read.
        problems: collects what is not a record.

    Raises:
        DataError: it cannot be had, or there are no or several such splits.
    """
    plain, _, config = name.partition(":")
    return records_of_dataset(_loaded(plain, config or None), plain, name, split, allowance, problems)


def _loaded(name: str, config: str | None) -> Any:
    import datasets
    from huggingface_hub import HfApi

    try:
        if not datasets.config.HF_HUB_OFFLINE:
            HfApi().dataset_info(name, timeout=_SECONDS)  # which, unlike datasets, does not try again and again
        return datasets.load_dataset(name, config)
    except Exception as error:  # of the network, the hub, the data: errors of every kind
        raise DataError(
            f"there is no path {name}, and the hub gave no data set of that id ({_reason(error)}); check "
            f"the path, the id and the network, or set HF_HUB_OFFLINE=1 to use earlier downloads."
        ) from error


def _reason(error: Exception) -> str:
    """What is wrong, on one line."""
    return f"{' '.join(str(error).split()) or type(error).__name__:.300}"
