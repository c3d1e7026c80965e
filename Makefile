# Everything a newcomer needs: `make run` and `make test` on a machine with Python 3.11, make and git.
PYTHON ?= python3.11
VENV ?= .venv
BIN = $(VENV)/bin
STAMP = $(VENV)/.installed

.PHONY: run test quick lint setup clean

run: setup            ## the quickstart: digits, 5 labels per class, a teacher and three rounds of students
	$(BIN)/selftrain run configs/quickstart.yaml

test: lint            ## lint, format check, types, every test
	$(BIN)/python -m pytest

quick: setup          ## the tests that take seconds
	$(BIN)/python -m pytest -m "not slow"

lint: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

setup: $(STAMP)       ## makes the environment once; again only when the requirements change

# Without venv's own upgrade of pip, and with the versions that were tested.
$(STAMP): pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev]'
	touch $(STAMP)

clean:
	rm -rf $(VENV) .selftrain build *.egg-info .mypy_cache .ruff_cache .pytest_cache
