"""Templates that write today's date: a run of yesterday verifies, reruns and continues today."""

import json
from datetime import date

import numpy as np
import pytest

from interference import config, load
from interference.errors import ConfigError
from interference.gradients.probe import Probe
from interference.measurement.compute import compute_config
from interference.verification.verify import verify_config
from mixlora.data import templates
from tests.support.checkpoints import CHATML

DATED = "{% set form = '%-d %-m' %}{{ 'w' ~ strftime_now(form) | replace(' ', ' w') ~ ' ' }}" + CHATML
"""The date as tokens of the tiny tokenizer, in a form that is no literal."""


@pytest.fixture
def clock(monkeypatch):
    def at(year, month, day):
        class Clock(date):
            @classmethod
            def today(cls):
                return date(year, month, day)

        monkeypatch.setattr(templates, "date", Clock)

    return at


@pytest.fixture
def configured(tiny, tmp_path):
    (tmp_path / "dated.jinja").write_text(DATED)

    def made(out, template=str(tmp_path / "dated.jinja"), **model):
        values = tiny.data(tmp_path / out)
        values["model"] |= {"chat_template": template, **model}
        return config.build(values, "test")

    return made


def test_a_run_keeps_its_day_by_which_it_is_verified_and_run_again(configured, clock, tmp_path):
    clock(2026, 3, 4)
    run = compute_config(configured("run"))
    assert run.meta["data"]["template"]["day"] == run.meta["config"]["model"]["date"] == "2026-03-04"
    clock(2027, 5, 6)
    assert verify_config(load(tmp_path / "run"), units=3).passed
    again = compute_config(config.load(tmp_path / "run", (), {"out": str(tmp_path / "again")}))
    np.testing.assert_array_equal(again.gram(), run.gram())
    other = compute_config(configured("other"))
    assert other.meta["data"]["template"]["day"] == "2027-05-06"
    assert np.abs(other.gram() - run.gram()).max() > 1e-3 * np.abs(run.gram()).max()
    named = compute_config(configured("named", date="2026-03-04"))
    np.testing.assert_array_equal(named.gram(), run.gram())


def interrupted(monkeypatch, settings, calls=1):
    """A compute that ends after so many batches, as by a kill."""
    own, left = Probe.gradients, [calls]

    def gradients(self, batch):
        if not left[0]:
            raise KeyboardInterrupt
        left[0] -= 1
        return own(self, batch)

    with monkeypatch.context() as patch:
        patch.setattr(Probe, "gradients", gradients)
        with pytest.raises(KeyboardInterrupt):
            compute_config(settings)


@pytest.mark.parametrize("dated", [True, False])
def test_a_killed_compute_continues_on_another_day(configured, clock, monkeypatch, tmp_path, dated):
    template = {} if dated else {"template": None}
    clock(2026, 3, 4)
    whole = compute_config(configured("whole", **template))
    interrupted(monkeypatch, configured("run", **template))
    assert (tmp_path / "run.partial" / "identity").exists()
    clock(2027, 5, 6)
    measured, own = [], Probe.gradients
    monkeypatch.setattr(Probe, "gradients", lambda self, batch: measured.append(1) or own(self, batch))
    run = compute_config(configured("run", **template))
    assert len(measured) == 2  # of three batches
    np.testing.assert_array_equal(run.gram(), whole.gram())
    assert run.meta["config"]["model"]["date"] == ("2026-03-04" if dated else None)
    assert run.meta["data"]["fingerprint"] == whole.meta["data"]["fingerprint"]


def test_another_day_that_is_named_is_other_work_only_where_the_template_writes_it(configured, clock, monkeypatch):
    clock(2026, 3, 4)
    interrupted(monkeypatch, configured("run"))
    with pytest.raises(Exception, match=r"another job .config.model.date was '2026-03-04' and is now '2026-03-05'"):
        compute_config(configured("run", date="2026-03-05"))
    interrupted(monkeypatch, configured("plain", template=None))
    assert compute_config(configured("plain", template=None, date="2026-03-05")).meta["config"]["model"]["date"] is None


def test_a_run_of_before_days_were_kept_is_read(configured, clock, tmp_path):
    compute_config(configured("run"))
    file = tmp_path / "run" / "run.json"
    meta = json.loads(file.read_text())
    del meta["seal"], meta["config"]["model"]["date"], meta["data"]["template"], meta["data"]["examples"]
    file.write_text(json.dumps(meta | {"schema": 1}))
    assert load(tmp_path / "run").meta["data"]["fingerprint"]


@pytest.mark.parametrize("value", ["yesterday", "2026-13-01", "2026-03-04 10:00:00"])
def test_what_is_no_day_is_refused(configured, value):
    with pytest.raises(
        ConfigError, match=r"model.date: is not a date; write year, month and day, as in 2026-11-29 \(it is"
    ):
        configured("run", date=value)


def test_a_day_of_yaml_is_one(tiny, tmp_path):
    (tmp_path / "c.yaml").write_text(json.dumps(tiny.data()))
    assert config.load(tmp_path / "c.yaml", ("model.date=2026-03-04",)).model.date == "2026-03-04"
