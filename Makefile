# make demo    serve the demo with the bundled checkpoint
# make test    lint, then run every test
# make test-lowest    every test, on the oldest versions that the requirements admit
#
# Python 3.11 or later and make are all that must be there. VENV=folder places the environment elsewhere.

PYTHON ?= python3
VENV ?= .venv

.PHONY: demo test test-lowest

# glibc has up to 8 heaps a core for threads, and each keeps what its largest answer took: with 2 memory hardly grows.
demo: $(VENV)/demo.stamp
	MALLOC_ARENA_MAX=2 $(VENV)/bin/python app.py

test: $(VENV)/test.stamp
	$(VENV)/bin/ruff check .
	$(VENV)/bin/python -m pytest

test-lowest: $(VENV)-lowest/test.stamp
	$(VENV)-lowest/bin/python -m pytest

# A stamp is written last, so an installation that was cut short is taken up again.
$(VENV)/demo.stamp: requirements.txt
	$(PYTHON) -m venv $(VENV)
	$(VENV)/bin/pip install -r requirements.txt
	touch $@

$(VENV)/test.stamp: requirements.txt pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(VENV)/bin/pip install -e ".[dev]"
	touch $@

# pip cannot choose the oldest versions; uv can.
$(VENV)-lowest/test.stamp: requirements.txt pyproject.toml
	$(PYTHON) -m venv $(VENV)-lowest
	$(VENV)-lowest/bin/pip install uv
	$(VENV)-lowest/bin/uv pip install --python $(VENV)-lowest/bin/python --resolution lowest-direct -e ".[dev]"
	touch $@
