# Two commands: `make serve` opens the demo run, `make test` runs everything.

PYTHON ?= $(shell for p in python3.12 python3.11 python3; do \
	$$p -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 12))' 2>/dev/null && echo $$p && break; done)
BIN := .venv/bin

.PHONY: serve demo test unit lint bench clean

serve: .venv/installed
	$(BIN)/panel serve dashboard --address 127.0.0.1 --port 5006

demo: .venv/installed
	$(BIN)/rewardscope demo

test: lint
	$(BIN)/python tests/ensure_chromium.py
	$(BIN)/rewardscope doctor --fetch > /dev/null
	$(BIN)/pytest -n 2 --dist loadfile -m "not browser" --hypothesis-profile=repeatable
	$(BIN)/pytest -m browser

unit: .venv/tested
	$(BIN)/pytest -x -q -m "not browser and not slow"

lint: .venv/tested
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

bench: .venv/tested
	$(BIN)/python -m benchmarks.run_all

.venv/bin/python:
	@test -n "$(PYTHON)" || { echo "Rewardscope needs Python 3.11 or 3.12; install one, or name it: make PYTHON=/path/to/python3.12"; exit 1; }
	$(PYTHON) -m venv .venv

.venv/installed: pyproject.toml | .venv/bin/python
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -e .
	@touch $@

.venv/tested: pyproject.toml | .venv/bin/python
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -e ".[test]"
	@touch $@ .venv/installed

clean:
	rm -rf .venv build dist *.egg-info
