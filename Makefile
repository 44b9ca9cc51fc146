# Each target sets itself up: a fresh clone needs python3 (3.11 or later, with venv) and nothing else.
PYTHON ?= python3
VENV   ?= .venv
BIN    := $(VENV)/bin
READY  := $(VENV)/.ready
DEMO   ?= demo

.PHONY: demo picture pictures docs test nvrtc lint types architecture clean
.DEFAULT_GOAL := test

# Made again when the dependencies change, not on every call.
$(READY): pyproject.toml
	@echo "setting up $(VENV) (once)"
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or later is needed; set PYTHON=")'
	@$(PYTHON) -m venv $(VENV)
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check -e '.[dev]'
	@touch $@

# Simulate frames, stack them, compare with the truth, print the figures; the picture is $(DEMO)/.
demo: $(READY)
	@$(BIN)/zemosaic-phase3 demo $(DEMO)

# Make the picture of the README again.
picture: demo
	@cp $(DEMO)/before_after.png docs/before_after.png

# Make the pictures of the page and of the terminal again; needs Chromium.
pictures: $(READY)
	@PYTHONPATH=. $(BIN)/python tests/support/make_pictures.py

# The pages of docs/ as a site, in build/site; a warning is an error.
docs: $(READY)
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check -e '.[docs]'
	@NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict --quiet --site-dir build/site

# On all cores; kernels first, because tests side by side would compile the same ones.
test: $(READY)
	@$(BIN)/python tests/support/compile_kernels.py
	@$(BIN)/python -m pytest -q -n auto --dist worksteal $(ARGS)

# The compiler of CUDA text (90 MB): with it the tests compile the kernels for every architecture, half a minute more.
nvrtc: $(READY)
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check -e '.[nvrtc]'

lint: $(READY)
	@$(BIN)/ruff check --quiet .
	@$(BIN)/ruff format --quiet --check .

types: $(READY)
	@$(BIN)/mypy --no-error-summary

architecture: $(READY)
	@$(BIN)/python -m pytest -q tests/test_architecture.py

clean:
	@rm -rf $(VENV) build dist *.egg-info $(DEMO) .pytest_cache .mypy_cache .ruff_cache .hypothesis
	@find . -name __pycache__ -type d -prune -exec rm -rf {} +
