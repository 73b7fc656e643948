# These commands need nothing but Python 3.11+ and make:
#   make demo    a daemon on an embedded PostgreSQL, with schedules to watch; Ctrl-C drains it
#   make test    the whole test suite, on a PostgreSQL that each of three processes (JOBS=3) starts itself
#   make matrix  the test suite on PostgreSQL 14 to 18 and Python 3.11 to 3.14, each in one run; ARGS=--all for every pair
#   make pgbouncer  gets PgBouncer, the newest and 1.18, from Debian's archive for the tests; `make test` does so itself
#   make soak    random faults of network, servers, pooler and daemons in one long life: SECONDS=3600, and SEED=1
#                for the same faults again; ARGS='--only "table locked,freeze"' for some kinds
#   make model   the random model, in bursts: SECONDS=3600, and SEED=1 or SEED=1:17 to see a finding again
#   make diagram the tables in docs/schema.md, drawn from the catalogue of a PostgreSQL
#   make bench   pgsched and its peers, each in an environment of its own; ONLY=herd for one part;
#                ONLY=compare BASE=COMMIT for this build and another commit's, ONLY=loops for uvloop and a newer Python

PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
STAMPS := $(VENV)/.stamps
JOBS ?= 3
SECONDS ?= 60
DEMO_DATA ?= .demo/postgres

.PHONY: demo test matrix pgbouncer lint soak model diagram bench clean

demo: $(STAMPS)/demo
	@mkdir -p .demo
	@cd examples && exec ../$(BIN)/pgsched run quickstart:create_scheduler --data-dir ../$(DEMO_DATA)

test: $(STAMPS)/dev pgbouncer
	$(BIN)/python -m pytest -n $(JOBS) --dist worksteal $(ARGS)

pgbouncer: $(BIN)/python
	@PYTHONPATH=tests $(BIN)/python -m support.pgbouncer_packages

matrix: $(STAMPS)/dev pgbouncer
	PYTHONPATH=tests $(BIN)/python -m support.matrix --jobs $(JOBS) $(ARGS)

lint: $(STAMPS)/dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy --strict pgsched
	$(BIN)/lint-imports

soak: $(STAMPS)/dev pgbouncer
	PYTHONPATH=tests/faults:tests PYTHONWARNINGS=ignore $(BIN)/python -m outside.soak --seconds $(SECONDS) $(if $(SEED),--seed $(SEED)) $(ARGS)

model: $(STAMPS)/dev
	PYTHONPATH=tests/faults:tests $(BIN)/python -m model.soak --seconds $(SECONDS) $(if $(SEED),--seed $(SEED)) $(ARGS)

diagram: $(STAMPS)/dev
	PYTHONPATH=tests $(BIN)/python -m support.diagram

bench:
	$(PYTHON) benchmarks/environments.py
	benchmarks/.environments/bench/bin/python benchmarks/bench.py $(if $(ONLY),--only $(ONLY)) $(if $(BASE),--base $(BASE)) $(ARGS)

clean:
	rm -rf $(VENV) .matrix .demo benchmarks/.environments build dist

$(BIN)/python:
	$(PYTHON) -c 'import sys; sys.exit(None if sys.version_info >= (3, 11) else "pgsched needs Python 3.11 or later: make PYTHON=python3.11 ...")'
	$(PYTHON) -m venv $(VENV)

$(STAMPS)/demo: $(BIN)/python pyproject.toml
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -e '.[embedded]'
	@mkdir -p $(STAMPS) && touch $@

$(STAMPS)/dev: $(BIN)/python pyproject.toml
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -e '.[dev]'
	@mkdir -p $(STAMPS) && touch $@ $(STAMPS)/demo
