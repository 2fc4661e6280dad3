"""Build a release and use it. Without --lower-bounds with the versions of constraints.txt, with it the oldest ones."""

import argparse
from pathlib import Path
from tempfile import TemporaryDirectory

from tests.release import built, used
from tests.support.paths import ROOT


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.release", description=__doc__)
    parser.add_argument("--lower-bounds", action="store_true", help="install the oldest versions that are allowed")
    lowest = parser.parse_args().lower_bounds
    sdist, wheel = built.build(ROOT / "dist")
    print(f"{sdist.name}: {built.check_sdist(sdist)} files; {wheel.name}: {built.check_wheel(wheel)} files", flush=True)
    with TemporaryDirectory() as name:
        folder = Path(name)
        used.check_citation(folder / "citation")
        used.check_tests(sdist, folder / "sdist")
        environment = used.Environment(folder / "stranger")
        constraints = used.lower_bounds(folder / "lowest.txt") if lowest else ROOT / "constraints.txt"
        environment.install(f"{wheel}[demo]", constraints=constraints)
        environment.run("python", "-m", "pip", "check")
        used.check_commands(environment)
        used.check_types(environment)
        used.check_use(environment)
    versions = "the lower bounds" if lowest else "the pinned versions"
    print(f"{wheel.name} can be released: it was installed with {versions} and used outside the checkout")


if __name__ == "__main__":
    main()
