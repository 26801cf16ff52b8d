# make demo: the main job on the bundled model. make test: the tests. Both make .venv where it is missing.
# make test-slow: the same promises on more (fifty kills, 20,000 broken rows, the demo to its end).
# make docs: the documentation, as pages in site/.
# make test-llamacpp: those tests that need llama.cpp, which it installs (34 MB).
# make test-peft: those tests that need torch and PEFT, which it installs (large).
# make dist: wheel and sdist in dist/, checked. make test-install: a wheel in empty environments, by pip, uv and pipx.
# make test-lowest: some tests with the oldest dependencies that pyproject.toml allows.
# make lint-workflows: the workflows of .github, which make lint checks too.
# TESTS names files or folders of tests: make test TESTS=tests/data
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
PYTEST_WITH = OPENBLAS_NUM_THREADS=1 $(WITH_BLAS) $(1)/python -m pytest -n $(WORKERS) --dist loadfile
PYTEST := $(call PYTEST_WITH,$(BIN))
TESTS ?=

# Of each dependency, the version that RESOLUTION chooses: lowest-direct, lowest or highest, as uv names them.
RESOLUTION ?= lowest-direct
LOWEST_VENV := $(VENV)-$(RESOLUTION)
# Tests that together call every dependency.
LOWEST_TESTS ?= tests/cli/test_help.py tests/cli/test_usage_errors.py tests/cli/test_terminals.py tests/data/test_file_kinds.py \
  tests/export/test_gguf.py tests/export/test_upload.py tests/forward/test_network.py tests/judges/test_endpoint.py \
  tests/reporting/test_chart_images.py tests/training/test_exact.py tests/web/test_row_routes.py

.PHONY: demo test test-slow test-llamacpp test-peft test-install test-lowest lint lint-workflows docs dist clean

demo: $(VENV)/.installed
	rm -rf demo-run
	$(WITH_BLAS) $(BIN)/mlx-dpo demo --adapter-path demo-run
	@echo "mlx-dpo is installed in $(VENV): source $(BIN)/activate"

test: $(VENV)/.installed-test
	$(PYTEST) $(TESTS)

test-slow: $(VENV)/.installed-test
	$(PYTEST) -m slow $(TESTS)

test-llamacpp: $(VENV)/.installed-test
	$(BIN)/pip install --quiet --editable '.[test-llamacpp]'
	$(PYTEST) -m llamacpp

test-peft: $(VENV)/.installed-test
	$(BIN)/pip install --quiet --editable '.[test-peft]'
	$(PYTEST) -m peft

# WHEEL is the wheel to install; by default it is built.
test-install: $(VENV)/.installed-test $(VENV)/.installed-dist
	WHEEL='$(WHEEL)' $(BIN)/python -m pytest -m installation -s tests/installation

test-lowest: $(VENV)/.installed-dist
	$(BIN)/uv venv --quiet --clear --python $(BIN)/python $(LOWEST_VENV)
	$(BIN)/uv pip install --quiet --python $(LOWEST_VENV) --resolution $(RESOLUTION) \
	  --editable '.[$(if $(EXTRA),$(EXTRA)$(comma))test]'
	$(call PYTEST_WITH,$(LOWEST_VENV)/bin) $(LOWEST_TESTS)

lint: $(VENV)/.installed-test lint-workflows
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

lint-workflows: $(VENV)/.installed-test
	$(BIN)/actionlint -shellcheck $(BIN)/shellcheck
	$(BIN)/shellcheck .ci/run .ci/install-packages .ci/check-mlx-lm .ci/update-issue
	$(BIN)/zizmor --offline --quiet .github

docs: $(VENV)/.installed-docs
	$(BIN)/mkdocs build --strict --quiet

# TAG is the tag that the version has to be of, as v0.1.0; by default it is not checked.
dist: $(VENV)/.installed-dist
	rm -rf dist
	$(BIN)/python -m build --outdir dist .
	$(BIN)/twine check --strict dist/*
	$(BIN)/python .ci/check_dist.py dist $(TAG)

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

$(VENV)/.installed-dist: $(VENV)/.installed
	$(BIN)/pip install --quiet --editable '.[$(if $(EXTRA),$(EXTRA)$(comma))dist]'
	touch $@

clean:
	rm -rf $(VENV) $(VENV)-* site dist
