# Each target sets up .venv by itself the first time.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin

.DELETE_ON_ERROR:
.PHONY: help demo test test-all lint types docs bench bench-gpu clean

help:
	@echo "make demo      attack the models that ship and write runs/demo/index.html (minutes)"
	@echo "make test      lint, types, and the tests (under 25 minutes)"
	@echo "make test-all  every test however slow, with coverage, the mutants and kills (hours)"
	@echo "make lint      lint and types only"
	@echo "make docs      build the documentation site in site/ (open site/index.html)"
	@echo "make bench     speed and memory against other libraries (an hour; BENCH=--quick: minutes)"
	@echo "make bench-gpu a GPU against other libraries (under ten minutes; a dry run without a GPU)"
	@echo "make clean     remove .venv, the site and caches"

demo: $(VENV)/.core
	$(BIN)/robustsnn demo

# A worker for each core, with one thread each: two threads do not make small networks faster.
ALONE := OMP_NUM_THREADS=1
PYTEST := $(ALONE) $(BIN)/pytest -n auto --dist worksteal

# With the peers, which the tests of adapters and benchmarks compare with. The fast tests first: most
# mistakes are told within minutes.
test: $(VENV)/.peers lint
	$(PYTEST) -m "not slow and not exhaustive" --durations=5
	$(PYTEST) -m "slow and not exhaustive" --durations=5

# The second environment holds the libraries that do not fit next to the peers.
# With the tests that are marked exhaustive, with coverage, which takes 1.4 times as long, and with
# each diagnostic silenced in turn.
test-all: $(VENV)/.all $(VENV)/.older lint
	$(PYTEST) --durations=20 --cov --cov-report=term
	$(ALONE) $(VENV)/older/bin/python -m pytest -p no:cacheprovider tests/foreign
	$(ALONE) $(BIN)/python -m tests.mutants
	$(ALONE) $(BIN)/python -m tests.kills 30

lint: $(VENV)/.dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	@$(MAKE) --no-print-directory types

types: $(VENV)/.dev
	$(BIN)/mypy robustsnn attacks reports zoo tests benchmarks studies examples docs

# Fails on a warning: mkdocs.yml is strict.
docs: $(VENV)/.docs
	$(VENV)/docs/bin/mkdocs build

# Resumes what was measured before; see benchmarks/README.md.
bench: $(VENV)/.peers
	$(BIN)/python -m benchmarks run $(BENCH)

# Without a GPU it runs to its end on the CPU, with tiny sizes, and measures nothing.
bench-gpu: $(VENV)/.peers
	$(BIN)/python -m benchmarks gpu $(BENCH)

clean:
	rm -rf $(VENV) .coverage .hypothesis .mypy_cache .pytest_cache .ruff_cache build site *.egg-info

# Stamps: the environment is renewed when the dependencies change.
$(VENV)/.core: pyproject.toml
	$(venv)
	$(BIN)/python -m pip install --editable '.[torchattacks]'
	@touch $@

$(VENV)/.dev: pyproject.toml
	$(venv)
	$(BIN)/python -m pip install --editable '.[dev,torchattacks]'
	@touch $@ $(VENV)/.core

$(VENV)/.peers: pyproject.toml
	$(venv)
	$(BIN)/python -m pip install --editable '.[dev,peers]'
	@touch $@ $(VENV)/.core $(VENV)/.dev

# Without its dependencies, which bring a package under the GPL: what it needs for counting is there.
$(VENV)/.all: $(VENV)/.peers
	$(BIN)/python -m pip install --no-deps 'neurobench>=2.2'

# sinabs asks for the driver of its chips, which its layers do not need.
$(VENV)/.older: pyproject.toml
	$(venv)
	$(PYTHON) -m venv --clear $(VENV)/older
	$(VENV)/older/bin/python -m pip install --upgrade 'pip>=25.1'
	$(VENV)/older/bin/python -m pip install --editable '.[dev]' --group peers-older
	$(VENV)/older/bin/python -m pip install --no-deps 'sinabs==3.1.3'
	@touch $@

# In an environment of its own, since mkdocs-material and torchattacks need different versions of
# requests. The site is made from the sources, so RobustSNN itself is not installed there.
$(VENV)/.docs: pyproject.toml
	$(venv)
	$(PYTHON) -m venv --clear $(VENV)/docs
	$(VENV)/docs/bin/python -m pip install --upgrade 'pip>=25.1'
	$(VENV)/docs/bin/python -m pip install --group docs
	@touch $@

# An environment without pip is one whose making was interrupted.
define venv
@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
  { echo "RobustSNN needs Python 3.11 or newer: make PYTHON=python3.11 ..." >&2; exit 1; }
@$(BIN)/python -m pip --version >/dev/null 2>&1 || $(PYTHON) -m venv --clear $(VENV)
endef
