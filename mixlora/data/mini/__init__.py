"""The mini suite: a small multimodal instruction-tuning benchmark made from data that installed packages bring along.

Six training tasks (`TASKS`) stand for the six capabilities of the paper, seven `UNSEEN` ones for its evaluation sets;
`load_base` gives a small LLaVA that was trained from scratch on captions and questions of other kinds.
"""

from mixlora.data.mini.suite import examples
from mixlora.data.mini.tasks import TASKS, UNSEEN, Task

__all__ = ["TASKS", "UNSEEN", "Task", "examples"]
