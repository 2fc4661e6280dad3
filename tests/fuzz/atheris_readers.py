"""The readers of data files and configurations under atheris, which follows coverage; a script, no test of pytest.

pip install atheris   (version 3.0.0 was used, with Python 3.11)
python tests/fuzz/atheris_readers.py -max_total_time=600 [corpus directory]
"""

import sys
import tempfile
from pathlib import Path

import atheris

with atheris.instrument_imports(include=["mixlora", "yaml", "json"]):
    from mixlora.common.errors import MixLoraError
    from mixlora.common.sections import BaseSection, TaskGroupSection
    from mixlora.common.settings import Section, build, overridden, read
    from mixlora.data.images import image_size, open_image
    from mixlora.data.reading.records import Record, read_example
    from mixlora.data.reading.tasks import read_tasks

SPECS = ({}, {"by": "task"}, {"where": {"task": "red"}}, {"fields": {"prompt": "q"}}, {"outside": True})
SUFFIXES = (".jsonl", ".json", ".parquet")


class Config(Section):
    """A configuration like those of the commands."""

    model: BaseSection
    tasks: dict[str, TaskGroupSection]


def main() -> None:
    """Fuzz until told to stop; whatever is no success and no error of ours ends it."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)

        def one(data: bytes) -> None:
            if len(data) < 2:
                return
            kind, choice, rest = data[0] % 4, data[1], data[2:]
            try:
                if kind == 0:
                    file = folder / f"x{SUFFIXES[choice % len(SUFFIXES)]}"
                    file.write_bytes(rest)
                    read_tasks(
                        build(TaskGroupSection, {"file": str(file), **SPECS[choice % len(SPECS)]}, "task"), "task"
                    )
                elif kind == 1:
                    (folder / "x.yaml").write_bytes(rest)
                    build(Config, overridden(read(folder / "x.yaml", Config, "run.json"), [], {}), "x.yaml")
                elif kind == 2:
                    build(Config, overridden({}, [rest.decode("utf-8", "surrogateescape")], {}), "--set")
                else:
                    (folder / "a.png").write_bytes(rest)
                    record = Record({"prompt": "What?", "response": "Red", "image": "a.png"}, "x:1", 0)
                    example = read_example(record, {}, folder.resolve(), "task")
                    image_size(example)
                    open_image(example)
            except MixLoraError as error:
                assert str(error)

        atheris.Setup(sys.argv, one)
        atheris.Fuzz()


if __name__ == "__main__":
    main()
