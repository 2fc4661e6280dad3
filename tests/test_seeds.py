"""Seeds of every configuration: from 0 to what numpy takes."""

import pytest

from interference import config as analysis
from interference.errors import ConfigError as AnalysisConfigError
from mixlora.common.errors import ConfigError
from mixlora.evaluation import config as evaluation
from mixlora.training import config as training

BASE = {"model": {"base": "mini"}, "tasks": {"read_word": {"mini": "heldout"}}}


@pytest.mark.parametrize(
    ("load", "section", "kind"),
    [
        (evaluation.load, (), ConfigError),
        (evaluation.load, ("generation",), ConfigError),
        (training.load, ("training",), ConfigError),
        (analysis.load, ("probe",), AnalysisConfigError),
    ],
)
def test_a_seed_that_nothing_could_be_drawn_by_is_refused(load, section, kind):
    base = (
        BASE
        | ({"method": "lora"} if load is training.load else {})
        | ({"model": {"base": "mini", "adapter": "a"}} if load is analysis.load else {})
    )
    for value, said in ((-1, "greater than or equal to 0"), (2**32, "less than 4294967296")):
        nested = {"seed": value}
        for name in section:
            nested = {name: nested}
        with pytest.raises(kind) as told:
            load(None, (), base | nested)
        assert ".".join((*section, "seed")) in str(told.value) and said in str(told.value)
        assert "\n" not in str(told.value)
