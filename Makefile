# Everything a newcomer needs: `make run` and `make test` on a machine with Python 3.11, make and git.
PYTHON ?= python3.11
VENV ?= .venv
BIN = $(VENV)/bin
STAMP = $(VENV)/.installed
# More than two cores' worth: some tests wait.
TESTS_AT_ONCE ?= 3

# Where an environment forbids bytecode, each of a test run's thousand processes compiles our modules again.
unexport PYTHONDONTWRITEBYTECODE

.PHONY: run test test-long test-all test-stack servers quick lint audit docs setup clean

run: setup            ## the quickstart: digits, 5 labels per class, a teacher and three rounds of students
	$(BIN)/selftrain run configs/quickstart.yaml

test: lint            ## lint, format check, types; then the tests
	$(BIN)/python -m pytest -m "not long" -n $(TESTS_AT_ONCE) --dist worksteal --durations 10

test-long: setup      ## the long forms of tests: every method's learning, many kills, all the combinations
	$(BIN)/python -m pytest -m long -n $(TESTS_AT_ONCE) --dist worksteal --timeout 3600 --durations 10

test-all: test test-long

test-stack: servers $(VENV)/.stack  ## the flows on PostgreSQL, Redis and the servers of docker-compose.yml, with faults
	$(BIN)/python -m pytest -m stack -x -n 3 --dist loadfile --timeout 1800 --durations 10 tests/stack

quick: setup          ## the tests that take seconds
	$(BIN)/python -m pytest -m "not slow and not long"

lint: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

audit: setup         ## known vulnerabilities of the versions that were tested; asks PyPI
	test -x $(VENV)/audit/bin/pip-audit || { $(PYTHON) -m venv $(VENV)/audit && \
	  $(VENV)/audit/bin/python -m pip install --quiet --disable-pip-version-check pip-audit; }
	$(VENV)/audit/bin/pip-audit --strict --disable-pip --no-deps --requirement constraints.txt

docs: $(VENV)/.docs    ## the documentation as a site, build/site/index.html; every link is checked
	NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build

$(VENV)/.docs: $(STAMP)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev,docs]'
	touch $@

setup: $(STAMP)       ## makes the environment once; again only when the requirements change

# Without venv's own upgrade of pip, and with the versions that were tested.
$(STAMP): pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev]'
	touch $(STAMP)

servers:              ## PostgreSQL and Redis, where they are missing; needs Debian and its root
	if ! ls /usr/lib/postgresql/*/bin/postgres >/dev/null 2>&1 || ! command -v redis-server >/dev/null; then \
	  apt-get update -qq && apt-get install -y -qq --no-install-recommends postgresql redis-server >/dev/null; fi

$(VENV)/.stack: $(STAMP)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev,stack]'
	touch $@

clean:
	rm -rf $(VENV) .selftrain build *.egg-info .mypy_cache .ruff_cache .pytest_cache
