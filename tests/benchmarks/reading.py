"""What it takes to read a large file: 200,000 records of prompt and response in JSON lines, in a process of its own."""

import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from mixlora.common.sections import TaskSection
from mixlora.data.reading.tasks import read_task
from tests.benchmarks.resident import forget_peak, peak
from tests.benchmarks.table import Row, show

RECORDS = 200_000


def run() -> None:
    """Measure and print."""
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "records.jsonl"
        with file.open("w") as out:
            for k in range(RECORDS):
                asked, said = f"Question {k}: what is {k} plus {k + 1}, and how is it found?", f"{2 * k + 1}; add them."
                out.write(json.dumps({"prompt": asked, "response": said}) + "\n")
        command = [sys.executable, "-W", "ignore", "-m", "tests.benchmarks.reading", str(file)]
        output = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    seconds, size = json.loads(output.splitlines()[-1])
    show(Row("reading", f"{RECORDS:,} records, processor time", f"{seconds:.1f} s", "", "<= 10 s"))
    show(Row("reading", "memory above the start", f"{size / 2**20:.0f} MiB", "", "<= 500 MiB"))


def _measured(file: str) -> tuple[float, int]:
    """Seconds of the processor, and bytes above the start; a child's getrusage would begin with its parent's peak."""
    forget_peak()
    before, start = peak(), time.process_time()
    found = read_task(TaskSection(file=file), "t")
    assert len(found) == RECORDS
    return time.process_time() - start, peak() - before


if __name__ == "__main__":
    print(json.dumps(_measured(sys.argv[1])))
