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
.PHONY: help setup demo ablations test check clean

help:            ## show the targets
	@grep -hE '^[a-z]+: .*##' $(MAKEFILE_LIST) | sed -E 's/^([a-z]+):[^#]*## /  make \1\t/' | expand -t 18

setup: $(VENV)/.stamp ## create .venv and install everything
$(VENV)/.stamp: pyproject.toml constraints.txt
	test -x $(PY) || $(PYTHON) -m venv $(VENV)
	$(PY) -m pip install --quiet uv
	$(PY) -m uv pip install --quiet --python $(PY) $(addprefix --find-links ,$(LINKS)) \
	    --constraint constraints.txt --editable ".[dev]"
	touch $@

demo: setup      ## train on the embedded photographs for some minutes, score, draw
	$(PY) -m opir_lightning.train experiment=demo

ablations: setup ## a small ablation on the embedded photographs, some 40 minutes; goes on where it was cut
	$(PY) -m opir_lightning.train -m experiment=ablation/small \
	    hydra/launcher=joblib hydra.launcher.n_jobs=2 hydra.launcher.verbose=10
	$(PY) -m opir_lightning.compare outputs/ablation/small/*/ -o experiments/ablations/small \
	    --against small-learned-stages_2-parameters_after --pictures 1

test: setup      ## the fast test suite, in two processes
	$(PY) -m pytest -n 2 --dist loadfile

check: setup     ## lint, layer rule, types
	$(PY) -m ruff check .
	$(PY) -m ruff format --check .
	$(PY) -m mypy

clean:           ## remove the environment and caches
	rm -rf $(VENV) .pytest_cache .ruff_cache .mypy_cache
