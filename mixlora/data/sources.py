"""Examples of a configuration's task, wherever it says they are: files, a benchmark's folder, or the mini suite."""

from mixlora.common.errors import DataError
from mixlora.common.sections import TaskSection
from mixlora.data.examples import Example
from mixlora.data.reading.tasks import TaskSpec, read_tasks
from mixlora.data.sampling import sample

MINI = 800
"""Examples of a task of the mini suite where none are asked for."""
_KEYS = {"file", "images", "outside", "where", "split", "fields", "by", "mme"}


def examples_of(
    name: str, task: TaskSection, count: int | None, seed: int, problems: list[DataError] | None = None
) -> dict[str, list[Example]]:
    """The examples of a task, or of each of the several that it holds, by the task's name.

    Args:
        name: the task's own.
        task: where they are.
        count: examples drawn from each; all if None. Tasks of the mini suite that share pictures get the same ones.
        seed: of the draw.
        problems: where records that cannot be used are told; None to raise at the first.

    Raises:
        DataError: as `read_tasks`.
    """
    if task.mini is not None:
        from mixlora.data import mini

        return {name: mini.examples(name, task.mini, count or MINI, seed)}
    found = read_tasks(TaskSpec.of(task.model_dump(include=_KEYS), name), name, problems)
    if count is None:
        return found
    return {own: sample(examples, count, seed, own) for own, examples in found.items()}
