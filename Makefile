# make demo: the main job on the bundled model. make test: the tests. Both make .venv where it is missing.
# make test-slow: the same promises on more (fifty kills, 20,000 broken rows, the demo to its end).
# make test-peft: those tests that need torch and PEFT, which it installs (large).
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin

# On Linux mlx comes without a backend of its own: the CPU's, unless another extra is named (cuda13).
EXTRA ?= $(if $(filter Linux,$(shell uname -s)),cpu)
comma := ,

# Linux only: OpenBLAS, where the machine has it, makes mlx's float32 products on the CPU tens of times faster.
BLAS := $(if $(filter Linux,$(shell uname -s)),$(firstword $(wildcard /usr/lib/*/openblas-pthread/libblas.so.3 /usr/lib64/libopenblasp.so.0)))
WITH_BLAS := $(if $(BLAS),LD_PRELOAD="$(BLAS)$${LD_PRELOAD:+:$$LD_PRELOAD}")

.PHONY: demo test test-slow test-peft lint clean

demo: $(VENV)/.installed
	rm -rf demo-run
	$(WITH_BLAS) $(BIN)/mlx-dpo demo --adapter-path demo-run
	@echo "mlx-dpo is installed in $(VENV): source $(BIN)/activate"

test: $(VENV)/.installed-test
	$(WITH_BLAS) $(BIN)/python -m pytest

test-slow: $(VENV)/.installed-test
	$(WITH_BLAS) $(BIN)/python -m pytest -m slow

test-peft: $(VENV)/.installed-test
	$(BIN)/pip install --quiet --editable '.[test-peft]'
	$(WITH_BLAS) $(BIN)/python -m pytest -m peft

lint: $(VENV)/.installed-test
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

$(VENV)/.installed: pyproject.toml
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --editable '.$(if $(EXTRA),[$(EXTRA)])'
	touch $@

$(VENV)/.installed-test: $(VENV)/.installed
	$(BIN)/pip install --quiet --editable '.[$(if $(EXTRA),$(EXTRA)$(comma))test]'
	touch $@

clean:
	rm -rf $(VENV)
