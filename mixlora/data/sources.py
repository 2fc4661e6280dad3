"""The examples of a configuration's task, from its source: files, a benchmark's folder, or the mini suite."""

from mixlora.common.errors import DataError
from mixlora.common.sections import TaskGroupSection, TaskSection
from mixlora.data.examples import Example
from mixlora.data.reading.problems import Noted
from mixlora.data.reading.tasks import read_task, read_tasks
from mixlora.data.sampling import sample

MINI_COUNT = 800
"""Examples of a task of the mini suite if no number is given."""


def examples_of(
    name: str,
    task: TaskSection,
    count: int | None,
    seed: int,
    problems: list[DataError] | None = None,
    noted: Noted | None = None,
) -> dict[str, list[Example]]:
    """The examples of a task, or of each of the several that it holds, by the task's name.

    Args:
        name: the task's name.
        task: its section.
        count: examples drawn from each task; all if None. Mini-suite tasks that share pictures get the same ones.
        seed: seed of the draw.
        problems: collects the errors of unusable records; None to raise the first.
        noted: counts the records that are skipped (on_error), and collects keys that are not read.

    Raises:
        DataError: as `read_tasks`.
    """
    if task.mini is not None:
        from mixlora.data import mini

        return {name: mini.examples(name, task.mini, count or MINI_COUNT, seed)}
    skipped: list[DataError] | None = [] if task.on_error == "skip" else None
    collected = problems if skipped is None else skipped
    if isinstance(task, TaskGroupSection):
        found = read_tasks(task, name, collected, noted)
    else:
        found = {name: read_task(task, name, collected, noted)}
    if skipped and noted is not None:
        noted.skip(skipped)
    if count is None:
        return found
    return {own: sample(examples, count, seed, own) for own, examples in found.items()}
