# Every target sets itself up on a bare machine: the virtual environment and what is installed in it are made when missing
# or when pyproject.toml has changed; a second call goes straight to work. pip uses the package index it is configured with.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check
# tests start many processes, which share their byte code
PYTEST := OMP_NUM_THREADS=1 PYTHONDONTWRITEBYTECODE= $(BIN)/python -m pytest -n 2 --dist worksteal

.PHONY: demo pretrain-demo test browser test-all mutation kernels check wheel bench bench-gpu peers docs clean
.DELETE_ON_ERROR:

# Sentiment of product reviews: pulls a base and data, climbs the ladder, writes runs/reviews
demo: $(VENV)/.installed-serve
	$(BIN)/bedplate adapt examples/reviews/task.yaml --out runs/reviews

test: $(VENV)/.installed-test
	$(PYTEST)

# The pages in a real browser, Chromium; skipped without
browser: $(VENV)/.installed-test
	$(PYTEST) -m "browser and not slow" tests/browser

# The slow tests and the browser's too; the bench extra brings llama.cpp's bindings, which may compile for minutes
test-all: $(VENV)/.installed-bench
	$(PYTEST) -m "slow or not slow"

# A base of Python code from the interpreter's own standard library, its completion skin, and the two served and asked:
# runs/stdlib, runs/completion
pretrain-demo: $(VENV)/.installed-serve
	$(BIN)/bedplate pretrain examples/pretrain/stdlib.yaml --out runs/stdlib
	$(BIN)/python examples/library_rows.py
	$(BIN)/bedplate adapt examples/pretrain/completion.yaml --out runs/completion || test $$? -ge 3  # whatever the verdict
	$(BIN)/python examples/pretrain/ask.py runs/stdlib/base runs/completion

# The share of small faults, drawn by SEED, that the nearest tests find
mutation: $(VENV)/.installed-test
	$(BIN)/python -m tests.mutation --samples $(or $(SAMPLES),40) --seed $(or $(SEED),0)

# Every level of the native kernel: compiled with warnings as errors, in a wheel, and run under emulated processors
kernels: $(VENV)/.installed-test
	$(PYTEST) -m slow -rs tests/inference/native/test_native.py tests/inference/native/test_native_arm.py \
		tests/inference/native/test_native_wheel.py tests/inference/native/test_native_tiles.py
	$(PYTEST) -m "slow or not slow" -k "(amx_emulated or plain) and not test_native_arm" tests/inference/native

check: $(VENV)/.installed-test $(VENV)/.installed-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pyright
	$(BIN)/lint-imports

# make bench NAME=prefill; without NAME all of benchmarks/. MASK=avx2, avx512_vnni or avx512_bf16 plays a lower kind of processor (make
# peers builds its llama.cpp first), JSON=results.jsonl keeps the results for benchmarks/table.py
bench: $(VENV)/.installed-bench
	set -e; for file in $(if $(NAME),benchmarks/$(NAME).py,$(filter-out $(SHARED:%=benchmarks/%.py),$(sort $(wildcard benchmarks/*.py)))); do \
	  $(if $(JSON),BEDPLATE_BENCH_JSON=$(JSON)) $(BIN)/python $$file $(if $(MASK),--mask $(MASK)); done
SHARED := apart arrivals build_peers comparison gate_rows goals load machine masks peers roof sampling servers shaped table

# llama.cpp for lower kinds of processor, into .peers; some minutes each
peers: $(VENV)/.installed-bench
	$(BIN)/python benchmarks/build_peers.py $(MASK)

# dist/*.whl with the native kernel for this machine; make wheel ARCH=aarch64 uses a cross compiler
wheel: $(VENV)/.installed-test
	BEDPLATE_WHEEL_MACHINE=$(ARCH) $(BIN)/python -c \
	  'from setuptools import build_meta; print(build_meta.build_wheel("dist", {"--global-option": ["-q"]}))'

# The whole comparison on a GPU, under ten minutes, into runs/bench-gpu/results.md; DEVICE=cpu SMALL=1 shows that it runs
bench-gpu: $(VENV)/.installed-test
	$(BIN)/python benchmarks/gpu/bench.py --device $(or $(DEVICE),cuda) $(if $(SMALL),--small)

docs: $(VENV)/.installed-docs
	$(BIN)/python docs/build.py

clean:
	rm -rf $(VENV) build dist site .pytest_cache .ruff_cache .hypothesis .import_linter_cache src/*.egg-info
	find src tests -name __pycache__ -type d -prune -exec rm -rf {} +

$(VENV)/.made:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo "error: Bedplate needs Python 3.11 or newer, and '$(PYTHON)' is not: make PYTHON=/path/to/python3.11 ..." >&2; exit 1; }
	$(PYTHON) -m venv $(VENV)
	touch $@

$(VENV)/.installed-%: pyproject.toml $(VENV)/.made
	@echo "installing into $(VENV): some minutes, most of them for torch"
	$(PIP) -e '.[$*]'
	$(BIN)/python -m compileall -q -j 2 src  # once, and not by every worker of the tests
	$(if $(filter test bench,$*),$(PYTEST) -n 0 --collect-only -q >/dev/null || true)  # the tests' byte code, and the kernel
	touch $@
