# make demo           Serve the demo with the bundled checkpoint.
# make test           Check style and formatting, then run every test.
# make test-lowest    Run every test on the oldest versions that the requirements admit.
# make format         Repair style and formatting.
#
# Only Python 3.11 or later and make must be installed. VENV=FOLDER sets where the environment is created.

PYTHON ?= python3
VENV ?= .venv

.PHONY: demo test test-lowest format

# By default glibc keeps up to 8 heaps a core for threads, each as large as its largest answer. With 2 heaps the memory
# hardly grows.
demo: $(VENV)/demo.stamp
	MALLOC_ARENA_MAX=2 $(VENV)/bin/python app.py

test: $(VENV)/test.stamp
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/python -m pytest --numprocesses auto --maxprocesses 8 --dist worksteal

test-lowest: $(VENV)-lowest/test.stamp
	$(VENV)-lowest/bin/python -m pytest --numprocesses auto --maxprocesses 8 --dist worksteal

format: $(VENV)/test.stamp
	$(VENV)/bin/ruff check --fix .
	$(VENV)/bin/ruff format .

# The stamp is written last, so an installation that was interrupted is resumed.
$(VENV)/demo.stamp: requirements.txt
	$(PYTHON) -m venv $(VENV)
	$(VENV)/bin/pip install -r requirements.txt
	touch $@

$(VENV)/test.stamp: requirements.txt pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(VENV)/bin/pip install -e ".[dev]"
	command -v chromium || $(VENV)/bin/playwright install chromium || echo "Tests that need Chromium will be skipped."
	touch $@

# pip cannot choose the oldest versions; uv can.
$(VENV)-lowest/test.stamp: requirements.txt pyproject.toml
	$(PYTHON) -m venv $(VENV)-lowest
	$(VENV)-lowest/bin/pip install uv
	$(VENV)-lowest/bin/uv pip install --python $(VENV)-lowest/bin/python --resolution lowest-direct -e ".[dev]"
	touch $@
