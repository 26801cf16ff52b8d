# make demo: the main job on the bundled model. make test: the tests. Both make .venv where it is missing.
# make test-slow: the same promises on more (fifty kills, 20,000 broken rows, the demo to its end).
# make docs: the documentation, as pages in site/.
# make test-llamacpp: those tests that need llama.cpp, which it installs (34 MB).
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

# Tests run in several processes, all tests of a file in one of them; one BLAS thread in each is faster than several that compete.
WORKERS ?= 2
PYTEST := OPENBLAS_NUM_THREADS=1 $(WITH_BLAS) $(BIN)/python -m pytest -n $(WORKERS) --dist loadfile

.PHONY: demo test test-slow test-llamacpp test-peft lint docs clean

demo: $(VENV)/.installed
	rm -rf demo-run
	$(WITH_BLAS) $(BIN)/mlx-dpo demo --adapter-path demo-run
	@echo "mlx-dpo is installed in $(VENV): source $(BIN)/activate"

test: $(VENV)/.installed-test
	$(PYTEST)

test-slow: $(VENV)/.installed-test
	$(PYTEST) -m slow

test-llamacpp: $(VENV)/.installed-test
	$(BIN)/pip install --quiet --editable '.[test-llamacpp]'
	$(PYTEST) -m llamacpp

test-peft: $(VENV)/.installed-test
	$(BIN)/pip install --quiet --editable '.[test-peft]'
	$(PYTEST) -m peft

lint: $(VENV)/.installed-test
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

docs: $(VENV)/.installed-docs
	$(BIN)/mkdocs build --strict --quiet

$(VENV)/.installed: pyproject.toml
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --editable '.$(if $(EXTRA),[$(EXTRA)])'
	touch $@

$(VENV)/.installed-test: $(VENV)/.installed
	$(BIN)/pip install --quiet --editable '.[$(if $(EXTRA),$(EXTRA)$(comma))test]'
	touch $@

$(VENV)/.installed-docs: $(VENV)/.installed
	$(BIN)/pip install --quiet --editable '.[$(if $(EXTRA),$(EXTRA)$(comma))docs]'
	touch $@

clean:
	rm -rf $(VENV) site
