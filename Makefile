# Two commands for a newcomer: `make run` and `make test`. Needs Python 3.11 or newer.
PYTHON ?= $(shell for p in python3.13 python3.12 python3.11 python3; do \
	$$p -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && { echo $$p; exit; }; done)
BIN := .venv/bin
ARGS ?=

.PHONY: run test check format bench load micro compiled test-compiled clean

run: .venv/installed
	$(BIN)/fastgw demo $(ARGS)

test: check
	$(BIN)/python -m pytest -n auto --maxprocesses 4 --dist loadfile $(ARGS)

check: .venv/installed-test
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy

format: .venv/installed-test
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

bench: .venv/installed-test
	$(BIN)/python -m bench.run $(ARGS)

load: .venv/installed-bench
	$(BIN)/python -m bench.load.run $(ARGS)

micro: .venv/installed-test
	$(BIN)/python -m bench.micro

compiled: .venv-compiled/installed

test-compiled: .venv-compiled/installed
	tar -c --exclude='./.*' --exclude=./fastgw . | tar -x -C .venv-compiled/tree
	cd .venv-compiled/tree && ../bin/python -m pytest -n auto --maxprocesses 4 --dist loadfile $(ARGS)

.venv/bin/python:
	@test -n "$(PYTHON)" || { echo "fastgw needs Python 3.11 or newer on PATH" >&2; exit 1; }
	$(PYTHON) -m venv .venv

.venv/installed: pyproject.toml | .venv/bin/python
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable .
	touch $@

.venv/installed-test: pyproject.toml | .venv/bin/python
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable '.[test,tokenizers]'
	touch .venv/installed $@

.venv/installed-bench: pyproject.toml | .venv/bin/python
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable '.[test,tokenizers,bench]'
	touch .venv/installed .venv/installed-test $@

# The compiled modules lie in a copy of the tree: here the source stays what is imported.
.venv-compiled/installed: setup.py pyproject.toml $(shell find fastgw -name '*.py')
	@test -n "$(PYTHON)" || { echo "fastgw needs Python 3.11 or newer on PATH" >&2; exit 1; }
	test -x .venv-compiled/bin/python || $(PYTHON) -m venv .venv-compiled
	rm -rf .venv-compiled/tree $@ && mkdir .venv-compiled/tree
	tar -c --exclude='./.*' . | tar -x -C .venv-compiled/tree
	FASTGW_COMPILE=1 .venv-compiled/bin/python -m pip install --quiet --disable-pip-version-check \
		--editable '.venv-compiled/tree[test,tokenizers]'
	touch $@

clean:
	rm -rf .venv .venv-compiled build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis
