# make app | classroom | test | soak | lint | bench | screenshots | catalogs | ledgers | example | checkpoint | clean
#
# Everything lives in .venv, which is made on first use. Another Python than python3: make app PYTHON=python3.12

PYTHON ?= python3
VENV := .venv
RUN := $(VENV)/bin/python -m
APP_ARGS ?=
PYTEST_ARGS ?=
WORKERS ?= 2
CHROMIUMS := chromium chromium-browser google-chrome

.PHONY: app classroom test soak lint style types layers bench screenshots catalogs ledgers example checkpoint clean chromium dev
.DELETE_ON_ERROR:

app: $(VENV)/.app
	$(RUN) streamlit run app.py $(APP_ARGS)

# The app for a class: it listens to the network, asks for a code, and bounds what each person may take.
classroom: $(VENV)/.app
	$(RUN) pages.shared.start_classroom $(APP_ARGS)

# Processes that share the tests: most tests wait for one process of several, and two keep two cores busy (tests/workers.py).
test: dev chromium
	$(RUN) pytest --numprocesses $(WORKERS) $(PYTEST_ARGS)

# Faults in every phase, a million inputs, five hundred runs, killed writers, two hosts: half an hour or more. Each prints its count.
soak: dev
	$(RUN) pytest -m nightly tests/launch tests/test_fuzz.py $(PYTEST_ARGS)

lint: style types layers

style: dev
	$(RUN) ruff check .
	$(RUN) ruff format --check .

types: dev
	$(RUN) mypy

layers: dev
	$(VENV)/bin/lint-imports

# A set of about five minutes, into benchmarks/results.md. Each benchmark prints one table; longer ones are run by name.
# None is a test: what they print depends on the machine.
bench: $(VENV)/.app
	$(RUN) benchmarks

# The pictures in README.md and docs/pages.md, from a real run in a real browser.
screenshots: dev chromium
	$(RUN) tests.browser.screenshots --readme

# What is said in the code, into pages/locale: new messages come in without a translation, to be given one by hand.
catalogs: $(VENV)/.app
	$(RUN) pages.locale.extract

# What the model's layers do, recorded again from them, after a change to engine/model or engine/parallel: docs/ledger.md.
# Those that are shipped, and those that come with the tests.
ledgers: dev
	$(RUN) tests.recordings
	folder=$$(mktemp -d) && $(RUN) engine.launch.recording.recordings --out $$folder --archives engine/ledger/recorded && rm -r $$folder

# The finished run that a new reader is shown, made again: after a change to what a run measures or to its format.
EXAMPLE := pages/shared/examples/example
example: $(VENV)/.app
	folder=$$(mktemp -d) && $(RUN) engine run --model gpt-tiny --layout dp2.tp2.pp2 --schedule 1f1b --microbatches 4 \
		--microbatch-size 2 --learning-rate 0.003 --steps 40 --parity --out $$folder && rm -rf $(EXAMPLE) && \
		mkdir -p $(dir $(EXAMPLE)) && mv $$folder/* $(EXAMPLE) && rmdir $$folder

# The trained weights that come with the program, made again: docs/generation.md says how long it takes.
checkpoint: $(VENV)/.app
	$(RUN) engine.launch.trained_weights engine/weights.npz

clean:
	rm -rf $(VENV) .venvs .hypothesis .import_linter_cache .mypy_cache .pytest_cache .ruff_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

# ------------------------------------------------------------------------------------------------------------ what is needed

dev: $(VENV)/.dev

$(VENV)/.made:
	@$(PYTHON) -c 'import sys; sys.exit(None if sys.version_info >= (3, 11) else \
		"Shardscope needs Python 3.11 or later and $(PYTHON) is %d.%d; choose another: make PYTHON=python3.12" % sys.version_info[:2])'
	@$(PYTHON) -c 'import ensurepip' 2> /dev/null || { \
		echo "$(PYTHON) cannot make virtual environments; on Debian and Ubuntu: apt-get install python3-venv" >&2; exit 1; }
	$(PYTHON) -m venv $(VENV)
	@touch $@

$(VENV)/.app: requirements.txt $(VENV)/.made
	$(RUN) pip install --disable-pip-version-check -r requirements.txt
	@touch $@

$(VENV)/.dev: requirements-dev.txt requirements.txt $(VENV)/.made
	$(RUN) pip install --disable-pip-version-check -r requirements-dev.txt
	@touch $@ $(VENV)/.app

# Where it can be had. Where not, the tests that need it are left out, and say so; the pictures say that they need it.
chromium:
	@for name in $(CHROMIUMS); do command -v $$name > /dev/null && exit 0; done; \
	if [ "$$(id -u)" = 0 ] && command -v apt-get > /dev/null; then \
		apt-get update && apt-get install --yes --no-install-recommends chromium fonts-noto-cjk; \
	fi || echo "Chromium could not be installed" >&2
