# make demo    serve the demo with the bundled checkpoint
# make test    lint, then run every test
#
# Python 3.11 or later and make are all that must be there. VENV=folder places the environment elsewhere.

PYTHON ?= python3
VENV ?= .venv

.PHONY: demo test

demo: $(VENV)/demo.stamp
	$(VENV)/bin/python app.py

test: $(VENV)/test.stamp
	$(VENV)/bin/ruff check .
	$(VENV)/bin/python -m pytest

# A stamp is written last, so an installation that was cut short is taken up again.
$(VENV)/demo.stamp: requirements.txt
	$(PYTHON) -m venv $(VENV)
	$(VENV)/bin/pip install -r requirements.txt
	touch $@

$(VENV)/test.stamp: requirements.txt pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(VENV)/bin/pip install -e ".[dev]"
	touch $@
