# Every target works from a fresh clone: they call `install` themselves.
PYTHON ?= python3.11
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed

.PHONY: install demo docs dist test coverage check format clean

install: $(STAMP)

$(STAMP): pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[dev]'
	touch $(STAMP)

demo: install
	$(BIN)/dynprune demo --output runs/demo --overwrite

# The site, into site/: open site/index.html, no server is needed.
docs: install
	NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build --strict

# What a package index takes, checked; nothing is uploaded.
dist: install
	$(BIN)/python -m pip install --quiet build twine
	rm -rf build dist
	$(BIN)/python -m build
	$(BIN)/python -m twine check --strict dist/*

# Inference engines leave threads behind that do not bear processes that come and go: their tests
# have processes of their own.
CLI_ENGINES := tests/cli/test_report_latency.py tests/cli/test_report_page.py tests/docs/test_tutorial.py
ENGINES := tests/export tests/cli/test_export.py $(CLI_ENGINES) tests/measure/test_latency.py \
	tests/report/test_page.py
# Notebooks run in kernels, whose threads of messages stay behind in the same way.
NOTEBOOKS := tests/docs/test_notebooks.py

test: install
	$(BIN)/python -m pytest $(addprefix --ignore=,$(ENGINES) $(NOTEBOOKS))
	$(BIN)/python -m pytest $(NOTEBOOKS)
	$(BIN)/python -m pytest tests/export
	$(BIN)/python -m pytest tests/cli/test_export.py
	$(BIN)/python -m pytest $(CLI_ENGINES) tests/measure/test_latency.py tests/report/test_page.py

# The same tests, slower, with the lines and branches that they reach counted.
coverage: install
	rm -f .coverage
	PYTEST_ADDOPTS="--cov --cov-append --cov-report=" $(MAKE) test
	$(BIN)/python -m coverage report --format=total --fail-under=90

check: install
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(MAKE) test

format: install
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

clean:
	rm -rf $(VENV) build dist runs site *.egg-info .mypy_cache .ruff_cache .pytest_cache
