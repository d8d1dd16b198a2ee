# Everything installs itself into .venv; a fresh clone needs Python 3.11 or newer and nothing else.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
WORKSPACE ?= workspace

export OMP_WAIT_POLICY ?= PASSIVE
export MLFLOW_DISABLE_TELEMETRY ?= true

.PHONY: run test check lint types bench test-dag audit-pins clean

$(VENV)/.installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt torch
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e ".[dev,bench]"
	touch $@

run: $(VENV)/.installed
	$(BIN)/counterpoise simulate --output $(WORKSPACE)/source
	$(BIN)/counterpoise run --config examples/simulated.toml --source $(WORKSPACE)/source \
		--workspace $(WORKSPACE) --summary $(WORKSPACE)/summary.json

test: $(VENV)/.installed
	$(BIN)/python -m pytest

check: lint types test

lint: $(VENV)/.installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: $(VENV)/.installed
	$(BIN)/mypy

bench: $(VENV)/.installed
	$(BIN)/python -m benchmarks

.venv-airflow/.installed: requirements-airflow.txt
	$(PYTHON) -m venv .venv-airflow
	.venv-airflow/bin/python -m pip install --quiet --disable-pip-version-check -r requirements-airflow.txt
	touch $@

test-dag: $(VENV)/.installed .venv-airflow/.installed
	COUNTERPOISE_COMMAND=$(CURDIR)/$(BIN)/counterpoise .venv-airflow/bin/python -m pytest --confcutdir tests/dags tests/dags

.venv-audit/.installed:
	$(PYTHON) -m venv .venv-audit
	.venv-audit/bin/python -m pip install --quiet --disable-pip-version-check pip-audit
	touch $@

audit-pins: .venv-audit/.installed
	.venv-audit/bin/pip-audit --strict --no-deps --disable-pip -r constraints.txt

clean:
	rm -rf $(VENV) .venv-airflow .venv-audit build *.egg-info
