PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin

.PHONY: demo test lint format types clean install install-dev clients floors

demo: install  ## Train with no attack, a fixed attack and a learned attack on bundled real digits, and compare
	$(BIN)/python scripts/compare.py --config quickstart --variants no_attack fixed learned --seeds 0 --run_dir runs/demo

test: install-dev lint types  ## Lint, types and tests
	OMP_NUM_THREADS=1 $(BIN)/pytest --numprocesses 2 --dist loadfile --max-worker-restart 0

lint: install-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: install-dev
	$(BIN)/mypy

format: install-dev
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

install: $(VENV)/.installed

install-dev: $(VENV)/.installed-dev

$(VENV)/.installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable .
	touch $@

$(VENV)/.installed-dev: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[dev]'
	touch $(VENV)/.installed $@

HEAVY := ray[rllib] sbx-rl pufferlib-core
TESTERS := pytest pytest-timeout hypothesis

clients:  ## Conformance of every client, heavy ones in environments of their own; writes the table of docs/clients.md
	$(PYTHON) -m venv .venv-clients/light
	.venv-clients/light/bin/python -m pip install --quiet --editable '.[clients]' $(TESTERS)
	.venv-clients/light/bin/python scripts/clients.py
	for client in $(HEAVY); do \
		$(PYTHON) -m venv ".venv-clients/$$client" && \
		".venv-clients/$$client/bin/python" -m pip install --quiet --editable . $(TESTERS) "$$client" && \
		".venv-clients/$$client/bin/python" scripts/clients.py || exit 1; \
	done

floors:  ## The smoke part of the tests at the lowest declared version of every dependency
	$(PYTHON) -m venv .venv-floors
	$(PYTHON) scripts/floors.py > .venv-floors/floors.txt
	.venv-floors/bin/python -m pip install --quiet --constraint .venv-floors/floors.txt --editable '.[eval,export,zoo]' \
		pytest pytest-timeout hypothesis
	OMP_NUM_THREADS=1 .venv-floors/bin/python -m pytest tests/envs tests/clients tests/agents/test_sb3.py \
		tests/test_learner.py tests/test_losses.py tests/test_checkpoint.py tests/test_configuration.py

clean:
	rm -rf $(VENV) .venv-clients .venv-floors build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis
