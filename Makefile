PYTHON ?= python3
BIN := .venv/bin
STAMP := .venv/.installed

.PHONY: help setup demo test numerical lint docs clean

help:
	@echo "make setup   install everything into .venv (PYTHON=python3.12 to choose the Python)"
	@echo "make demo    setup, then record and distill a small run: recipes/digits.yaml"
	@echo "make test    setup, lint and the tests"
	@echo "make numerical  the tests that compare numbers up to rounding (see .ci/run)"
	@echo "make lint    ruff, mypy and the order of imports"
	@echo "make docs    setup, and the documentation as a site, in the folder site"
	@echo "make clean   remove caches and build output (keeps .venv, runs/ and outputs/)"

setup: $(STAMP)

# Written last, so that an install which stopped half-way is taken up again.
$(STAMP): pyproject.toml constraints.txt
	@rm -f $@
	@PYTHON="$(PYTHON)" bash setup.sh
	@touch $@

demo: setup
	$(BIN)/tgdd run recipes/digits.yaml

PYTEST := $(BIN)/pytest -q -n auto --maxprocesses 8 --dist loadfile --no-loadscope-reorder --durations 25

test: setup lint
	$(PYTEST)

# The other files are left out, as importing them takes longer than these tests.
numerical: setup
	$(PYTEST) -m "numerical and not once" $$(grep -rl --include='*.py' mark.numerical tests)

lint: setup
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy tgdd_plugin
	$(BIN)/lint-imports

# mkdocs.yml is strict: a warning, such as one of a link that leads nowhere, is an error.
docs: setup
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build
	@echo "docs: open site/index.html, or for the search too: python3 -m http.server --directory site"

clean:
	rm -rf build dist site *.egg-info .pytest_cache .mypy_cache .ruff_cache .import_linter_cache
	find . -path ./.venv -prune -o -type d -name __pycache__ -exec rm -rf {} +
