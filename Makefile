# One virtual environment per Python: `make test PYTHON=python3.12 VENV=.venv-3.12`.
PYTHON ?= python3
VENV ?= .venv
ZOO ?= .venv-zoo
WORKERS ?= 3
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed


.PHONY: quickstart test test-slow test-versions fuzz peers zoo docs check format clean

quickstart: $(STAMP)
	$(BIN)/python -m pqt_jax.train --config configs/quickstart.py --workdir runs/quickstart

# Each worker starts with one half of the files, so that most programs are compiled by one worker.
# One that is done early takes tests from the other. Some tests alone: TESTS='tests/numerics'.
PYTEST := $(BIN)/python -m pytest --dist worksteal -q

test: $(STAMP)
	$(PYTEST) -n 2 -m "not slow" $(TESTS)

# Many slow tests wait for other processes, so that two cores are enough for more workers than two.
# WORKERS=4 takes less time and up to 16 GB of memory.
test-slow: $(STAMP)
	$(PYTEST) -n $(WORKERS) -m slow

# The slow tests whose result may change with the version of JAX or Flax.
test-versions: $(STAMP)
	$(PYTEST) -n $(WORKERS) -m "slow and jax_version"

# Damaged files into every reader, for ten minutes at most. Options: FUZZ='--seed=1 --cases=500'.
fuzz: $(STAMP)
	PYTHONPATH=tests $(BIN)/python -m fuzz $(FUZZ)

# What some tests compare with, where it is installed: transformers, PyTorch, torchao, gfloat.
peers: $(VENV)/.peers

# Models of packages on PyPI, in an environment of their own of about 5 GB. An old pip does not
# end: it tries each version of what the packages need.
zoo:
	test -x $(ZOO)/bin/python || $(PYTHON) -m venv $(ZOO)
	$(ZOO)/bin/python -m pip install --quiet --disable-pip-version-check --upgrade 'pip>=26'
	$(ZOO)/bin/python -m pip install --quiet --disable-pip-version-check --editable '.[test,zoo]'
	$(ZOO)/bin/python -m pytest -q tests/transform/test_zoo_packages.py

# The site, in build/docs/index.html. Warnings are errors; nothing is fetched but the tools themselves.
docs: $(VENV)/.docs
	$(BIN)/python -m sphinx -W --keep-going -q -d build/doctrees docs build/docs

check: $(STAMP)
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/pyright
	$(BIN)/python -m pytest -q -n 2 --doctest-modules pqt_jax

format: $(STAMP)
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

$(STAMP): pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "python 3.11 or newer is needed; set PYTHON=...")'
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable '.[test,dev]'
	touch $@

# An extra of pyproject.toml.
$(VENV)/.peers $(VENV)/.docs: $(VENV)/.%: $(STAMP)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable '.[$*]'
	touch $@

clean:
	rm -rf $(VENV) $(ZOO) .cache .pytest_cache .ruff_cache
