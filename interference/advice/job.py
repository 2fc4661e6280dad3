"""The job: advice from runs, written with its configurations, and tried by training where that is asked for.

Not here: what is advised (`advice`), and the trainings (`trial`).
"""

from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

from interference.advice import configurations, tried
from interference.advice.advice import MARKER, Advice, of_runs
from interference.config import AnalysisConfig, build
from interference.config import load as read_config
from interference.errors import ConfigError
from interference.run import Run, load
from mixlora.common.files import expanded, without_dots
from mixlora.common.outputs import OutputFolder
from mixlora.common.progress import Progress, silent

COMMAND = "interference advise"


def advise(
    runs: Sequence[Path | str] | Path | str,
    train: AnalysisConfig | Path | str | None = None,
    out: Path | str | None = None,
    settings: Sequence[str] = (),
    progress: Progress = silent,
) -> Advice:
    """What runs say can be done about interference, written with the configurations that follow.

    Args:
        runs: Directories of runs: checkpoints along one training, on the same examples; or a single one.
        train: A configuration as `validate` takes it, or its path: by its training the advice is tried.
        out: Directory of the advice; None for the first run's with "-advice" behind its name. The trial goes beside it,
            with "-trial".
        settings: "key.subkey=value", over the configuration's.
        progress: Called after every step of the trial.

    Returns:
        The advice as it was written, with its trial where there is one.

    Raises:
        ScopeError: If there is no run, one twice, one task alone, runs are of different tasks or examples, or a task
            has too few examples for the trial.
        RunError: If a run cannot be read, or a directory holds something else or cannot be written.
        ConfigError: If the record of the run's training cannot be read, or a value of the trial cannot be used.
        DataError: If a task's file or a record cannot be used.
        CheckpointError: If the base cannot be loaded.
        MeasurementError: If a training diverges.
    """
    places = [without_dots(expanded(run).absolute()) for run in ([runs] if isinstance(runs, Path | str) else runs)]
    loaded = [load(place) for place in places]
    found = of_runs(loaded, places)
    place = place_of(places, out)
    config = train if isinstance(train, AnalysisConfig | None) else read_config(expanded(train), settings)
    folder = OutputFolder(place, COMMAND)
    files, why = configurations.configurations(found, loaded[0], place)
    found = replace(found, configurations=[name for name in files if name.endswith(".yaml")], unwritten=why)
    folder.replace({MARKER: found.to_json().encode(), **{name: text.encode() for name, text in files.items()}})
    if config is None:
        return found
    from interference.advice import trial  # torch, which advice alone does not need

    probed = list(_probed(loaded, places))
    return replace(found, trial=trial.compute(config, found, tried.place_of(place), probed, progress))


def place_of(runs: Sequence[Path], out: Path | str | None) -> Path:
    """Where the advice goes: `out`, or else beside the first run, under its name with "-advice".

    Args:
        runs: Their directories.
        out: The directory that was asked for.

    Returns:
        An absolute path.
    """
    if out is not None:
        return without_dots(expanded(out).absolute())
    return runs[0].with_name(f"{runs[0].name}-advice")


def _probed(runs: Sequence[Run], places: Sequence[Path]) -> Iterator[AnalysisConfig]:
    """The configurations of runs, which say what was probed."""
    for run, place in zip(runs, places, strict=True):
        if not run.meta.get("config"):
            raise ConfigError(
                f"{place} was computed from a notebook and does not tell which examples were probed, so a trial could "
                "read them; compute it from a configuration to try its advice"
            )
        yield build(run.meta["config"], str(place))
