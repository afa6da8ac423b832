# make demo | test | check: each makes its own environment in .venv first.
PYTHON ?= python3
VENV   ?= .venv
BIN    := $(VENV)/bin
SERIES ?=
TESTS  ?= tests
# Three on two cores: much of a fault test is waiting.
WORKERS ?= 3
FAULT_WORKERS ?= 2
FAULTS  ?= $(shell grep -rl --include='test_*.py' 'tests.faults' tests)

# The tests start hundreds of processes: each would compile the node anew.
unexport PYTHONDONTWRITEBYTECODE

.DEFAULT_GOAL := help
.PHONY: help demo test check faults format bench gpu serve pacs clean

help:  ## This list
	@grep -hE '^[a-z]+:.*##' $(MAKEFILE_LIST) | sed 's/:.*##/\t/' | expand -t 10

$(VENV)/pip.stamp:
	$(PYTHON) -c 'import sys; sys.exit("Luminode needs Python 3.11 or newer; try make PYTHON=python3.12") if sys.version_info < (3, 11) else None'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --upgrade pip
	@touch $@

$(VENV)/run.stamp: pyproject.toml $(VENV)/pip.stamp
	@echo "Installing Luminode into $(VENV) (once, a minute or two)"
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -e .
	@touch $@

$(VENV)/dev.stamp: pyproject.toml $(VENV)/pip.stamp
	@echo "Installing Luminode with its development tools, torch and TensorRT for RTX into $(VENV) (once, a few minutes)"
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -e '.[dev,training,tensorrt]'
	@touch $@ $(VENV)/run.stamp

demo: $(VENV)/run.stamp  ## The main job, from a simulated scanner to a small PACS (SERIES=folder sends yours)
	$(BIN)/luminode demo $(if $(SERIES),--series $(SERIES))

test: $(VENV)/dev.stamp  ## The whole test suite, under 10 minutes on 2 cores
	$(BIN)/python -m pytest $(TESTS) -n $(WORKERS) --dist loadscope --no-loadscope-reorder -q

check: $(VENV)/dev.stamp  ## ruff, mypy --strict, import contracts
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

faults: $(VENV)/dev.stamp  ## The fault tests with full counts, their mutations, docs/reliability.md (up to 2 hours)
	@status=0; \
	LUMINODE_FAULTS=full $(BIN)/python -m pytest $(FAULTS) -n $(FAULT_WORKERS) --dist loadscope -q || status=1; \
	$(BIN)/python -m tests.faults.mutate || status=1; \
	$(BIN)/python -m tests.faults.report || status=1; \
	exit $$status

format: $(VENV)/dev.stamp  ## Format and sort imports
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

bench: $(VENV)/dev.stamp  ## Speed beside DCMTK, Orthanc and pynetdicom, into docs/performance.md (ONLY=door,sender,... for a part)
	$(BIN)/python -m tests.bench $(if $(ONLY),--only $(ONLY))

gpu: $(VENV)/dev.stamp  ## All there is to measure on an NVIDIA GPU, into docs/evaluation/gpu.md (TFLOPS= and GBS= of the card)
	$(BIN)/python -m tests.gpu.evaluate $(if $(TFLOPS),--tflops $(TFLOPS)) $(if $(GBS),--gbs $(GBS))

serve: $(VENV)/run.stamp  ## Run the node on ./config.yaml
	$(BIN)/luminode serve

pacs: $(VENV)/run.stamp  ## Run the small trial PACS
	$(BIN)/luminode pacs

clean:  ## Remove the environment and caches
	rm -rf $(VENV) .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache demo-out
