PYTHON ?= python3
BIN := .venv/bin
STAMP := .venv/.installed

.PHONY: help setup demo test numerical lint pins docs clean

help:
	@echo "make setup   install everything into .venv (PYTHON=python3.12 to choose the Python)"
	@echo "make demo    setup, then record and distill a small run: recipes/digits.yaml"
	@echo "make test    setup, lint and the tests"
	@echo "make numerical  the tests that compare numbers up to rounding (see .ci/run)"
	@echo "make lint    ruff, mypy and the order of imports"
	@echo "make pins    whether constraints.txt can be installed with each Python, 3.10 to 3.13"
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
	$(BIN)/mypy tgdd_plugin tests/typed_script.py
	$(BIN)/lint-imports

# Only asks the index. A version of Python that a pin does not take leaves its users without an installation.
pins: setup
	for python in 3.10.0 3.11.0 3.12.0 3.13.0; do \
		$(BIN)/uv pip compile -q pyproject.toml --extra dev -c constraints.txt --python-version $$python >/dev/null || exit 1; \
	done

# mkdocs.yml is strict: a warning, such as one of a link that leads nowhere, is an error.
docs: setup
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build
	@echo "docs: open site/index.html, or for the search too: python3 -m http.server --directory site"

clean:
	rm -rf build dist site *.egg-info .pytest_cache .mypy_cache .ruff_cache .import_linter_cache
	find . -path ./.venv -prune -o -type d -name __pycache__ -exec rm -rf {} +
