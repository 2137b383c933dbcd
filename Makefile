# The two-command routes of README.md. Each target makes .venv and installs what it needs the first time.
PYTHON ?= python3
BIN = .venv/bin
PYTEST = MRLA_OFFLINE=1 $(BIN)/python -m pytest -n 2
# Every output of 00 to 06 is compared (strict); 07 and later train and time, and only their tagged cells are (lax).
NBVAL = --dist loadfile --nbval-cell-timeout 120

.PHONY: train lab test test-slow notebooks site test-site

train: .venv/train
	$(BIN)/mrla train

lab: .venv/course
	$(BIN)/jupyter lab notebooks

test: .venv/test
	$(PYTEST) -m "not slow"
	$(PYTEST) $(NBVAL) --nbval notebooks --ignore-glob="*/0[7-9]_*" --ignore-glob="*/1[0-9]*"
	$(PYTEST) $(NBVAL) --nbval-lax notebooks --ignore-glob="*/0[0-6]_*"

test-slow: .venv/test
	$(PYTEST) -m slow

notebooks: .venv/test
	MRLA_OFFLINE=1 $(BIN)/python notebooks/run_all.py

site: .venv/site
	$(BIN)/python site/build.py

test-site: site
	$(BIN)/python -m pytest -n 2 site/tests

# One stamp file for each set of extras; a change of what is wanted installs again. The scripts in an environment name
# its place, so one that was moved, or came with a copied folder, is made anew.
IN_PLACE = grep -qsF -e '!$(CURDIR)/.venv/' -e '"$(CURDIR)/.venv/' -e ' $(CURDIR)/.venv/' $(BIN)/pip
.PHONY: moved
MOVED := $(if $(wildcard .venv),$(shell $(IN_PLACE) || echo moved))

.venv/train: EXTRAS =
.venv/course: EXTRAS = [course]
.venv/test: EXTRAS = [test]
.venv/site: EXTRAS = [site]
.venv/train .venv/course .venv/test .venv/site: pyproject.toml constraints.txt $(MOVED)
	@$(IN_PLACE) && $(BIN)/python -c 'import sys, pip; assert sys.version_info >= (3, 11)' 2>/dev/null || \
	{ $(PYTHON) -c 'import sys, venv, ensurepip; assert sys.version_info >= (3, 11)' 2>/dev/null || \
	  { echo "$(PYTHON) must be Python 3.11 or newer that can make virtual environments (on Debian and Ubuntu:" \
	    "apt install python3-venv). To take another: make $(MAKECMDGOALS) PYTHON=python3.12" >&2; exit 1; }; \
	  echo "Making .venv ..."; $(PYTHON) -m venv --clear .venv; }
	@echo "Installing what this needs into .venv; the first time this takes minutes, PyTorch being large ..."
	$(BIN)/python -m pip install --disable-pip-version-check -c constraints.txt -e ".$(EXTRAS)"
	@touch $@
