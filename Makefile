# Every target sets up what it needs in one virtual environment in this checkout.
PYTHON ?= $(firstword $(shell command -v python3.11) $(shell command -v python3))
VENV   ?= .venv
PY     := $(VENV)/bin/python
# uv does not read pip's settings: hand it pip's folder of local wheels, if this machine has one.
LINKS  := $(or $(PIP_FIND_LINKS),$(shell $(PYTHON) -m pip config get global.find-links 2>/dev/null))
export PIP_DISABLE_PIP_VERSION_CHECK := 1
export NO_ALBUMENTATIONS_UPDATE := 1
# Let the first import leave its bytecode behind: without it every `import lightning` compiles anew.
unexport PYTHONDONTWRITEBYTECODE

.DEFAULT_GOAL := help
.PHONY: help setup demo ablations search test coverage slow check lock lock-check licences audit wheel wheel-test hooks clean

help:            ## show the targets
	@grep -hE '^[a-z-]+: .*##' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):[^#]*## /  make \1\t/' | expand -t 18

# What is installed has the version of the lock, and what comes from the package index one of the hashes there. A CPU build
# of torch in one's own folder of wheels has none: it goes first, and then nothing else is asked for.
# Compiled at once: otherwise the first run of the tests does it, and takes a tenth longer.
INSTALL = $(PY) -m uv pip install --quiet --compile-bytecode --python $(PY) --constraint requirements.lock \
    --build-constraint requirements.lock
WHAT   ?= --editable ".[dev]"
TORCH  := $(shell sed -nE 's/^(torch==[0-9.]+).*/\1/p' requirements.lock)

setup: $(VENV)/.stamp ## create .venv and install everything
$(VENV)/.stamp: pyproject.toml requirements.lock
	test -x $(PY) || $(PYTHON) -m venv $(VENV)
	awk '/^uv==/ {found = 1} found; found && !/\\$$/ {exit}' requirements.lock >$(VENV)/uv.txt
	$(PY) -m pip install --quiet --no-deps --require-hashes --requirement $(VENV)/uv.txt
	$(if $(LINKS),$(PY) -m uv pip install --quiet --python $(PY) --no-deps --no-index $(addprefix --find-links ,$(LINKS)) \
	    $(TORCH) || echo "no $(TORCH) in $(LINKS): taking that of the package index")
	$(INSTALL) $(WHAT)
	touch $@

demo: setup      ## train on the embedded photographs for some minutes, score, draw
	$(PY) -m opir_lightning.train experiment=demo

ablations: setup ## a small ablation on the embedded photographs, some 40 minutes; goes on where it was cut
	$(PY) -m opir_lightning.train -m experiment=ablation/small \
	    hydra/launcher=joblib hydra.launcher.n_jobs=2 hydra.launcher.verbose=10
	$(PY) -m opir_lightning.compare outputs/ablation/small/*/ -o experiments/ablations/small \
	    --against small-learned-stages_2-parameters_after --pictures 1

search: setup    ## a small search on the embedded photographs, in two processes; goes on where it was cut
	$(PY) -m opir_lightning.search search=small & other=$$!; \
	    $(PY) -m opir_lightning.search search=small; status=$$?; wait $$other && exit $$status
	$(PY) -m opir_lightning.compare outputs/search/small -o experiments/search/small --pictures 1

test: setup      ## the fast test suite, in two processes
	$(PY) -m pytest -n 2 --dist loadfile

coverage: setup  ## the fast test suite, and which lines it does not reach
	$(PY) -m pytest -n 2 --dist loadfile --cov --cov-report=term-missing:skip-covered --cov-report=xml

slow: setup      ## the slow tests
	$(PY) -m pytest -m "slow and not gpu and not wheel"

check: setup     ## lint, layer rule, types, licences
	$(PY) -m ruff check .
	$(PY) -m ruff format --check .
	$(PY) -m mypy
	$(PY) .ci/licences.py

lock: setup      ## write requirements.lock for what pyproject.toml asks; UPGRADE=1 takes the newest versions
	UV=$(VENV)/bin/uv .ci/lock $(if $(UPGRADE),--upgrade)

lock-check: setup ## is requirements.lock what pyproject.toml asks for, on every Python and system?
	UV=$(VENV)/bin/uv .ci/lock --check

licences: setup  ## write LICENCES.md, the licences of all that is installed along
	$(INSTALL) --editable ".[dev,demo,ci]"
	$(PY) .ci/licences.py --write

audit: setup     ## known vulnerabilities of the versions in requirements.lock
	$(INSTALL) --editable ".[dev,ci]"
	$(PY) .ci/audit.py

wheel: setup     ## build the source archive and the wheel into dist/
	$(PY) -m uv build --quiet --no-build-isolation --python $(PY)

wheel-test: setup ## build twice, compare, install the wheel into an empty environment and use it there
	$(PY) -m pytest -m wheel

hooks: setup     ## check each commit as `make check` does
	$(INSTALL) --editable ".[dev,ci]"
	$(VENV)/bin/pre-commit install

clean:           ## remove the environment and caches
	rm -rf $(VENV) .pytest_cache .ruff_cache .mypy_cache dist .coverage* coverage.xml
