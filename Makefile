# `make demo`: the whole request on a bundled sample. `make test`: the tests. Both set up what they
# need in .venv; choose another interpreter with PYTHON=python3.12, another place with VENV=….
# `make test EXTRAS=test,parity` also compares with PyTorch, transformers and diffusers.
# `make quick`: the tests without those that start a process or are marked long; some three minutes on two cores.
PYTHON ?= python3
VENV ?= .venv
EXTRAS ?= test
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt

.PHONY: demo test quick lint wheel sbom clean

demo: $(VENV)/installed
	$(BIN)/python -m unlearn_jax.pipeline --config=configs/quickstart.py --workdir=runs/quickstart

test: $(VENV)/installed-$(EXTRAS) lint
	$(BIN)/python -m pytest -n 2

quick: $(VENV)/installed-$(EXTRAS)
	$(BIN)/python -m pytest -n 2 --quick

lint: $(VENV)/installed-$(EXTRAS)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

# The same bytes from the same commit, whoever builds it.
wheel: $(VENV)/bin/python
	rm -rf build dist/*.whl
	umask 022 && SOURCE_DATE_EPOCH=$$(git log -1 --format=%ct) $(BIN)/python -m pip wheel --quiet \
	  --disable-pip-version-check --no-deps --wheel-dir dist .

# What is installed, with versions, licences and sources, in CycloneDX's format.
sbom: $(VENV)/installed
	$(PYTHON) -m venv $(VENV)-sbom
	$(VENV)-sbom/bin/python -m pip install --quiet --disable-pip-version-check cyclonedx-bom==7.5.0
	mkdir -p dist
	$(VENV)-sbom/bin/cyclonedx-py environment --pyproject pyproject.toml -o dist/sbom.json $(BIN)/python

clean:
	rm -rf $(VENV) $(VENV)-sbom build dist runs

$(VENV)/bin/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
	  echo "error: Python 3.11 or newer is needed, $(PYTHON) is $$($(PYTHON) --version 2>&1). Try: make PYTHON=python3.12" >&2; exit 1; }
	$(PYTHON) -m venv $(VENV)

$(VENV)/installed: $(VENV)/bin/python pyproject.toml constraints.txt
	@echo "Installing unlearn_jax into $(VENV) (about a minute, 1 GB) …"
	$(PIP) --editable .
	@touch $@

$(VENV)/installed-$(EXTRAS): $(VENV)/installed
	$(PIP) --editable '.[$(EXTRAS)]'
	@touch $@
