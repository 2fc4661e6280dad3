"""Places of the checkout that tests read."""

from pathlib import Path

ROOT = Path(__file__).parents[2]
GOLDEN = ROOT / "tests" / "golden"
CONFIGS = ROOT / "analysis_configs"
REFERENCE = ROOT / "reports" / "reference"
