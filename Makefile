# Everything runs in the project's own .venv, which the first target to need it builds.
# Progress goes to stderr; stdout belongs to the command. Bytecode is compiled at set-up: it halves
# the start of every SGLang process, also where PYTHONDONTWRITEBYTECODE is set. ARGS goes to pytest:
# make unit ARGS="-k policy -x"

PYTHON ?= $(shell for p in python3.12 python3.11 python3 python; do \
	$$p -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] < (3, 13))' 2>/dev/null \
	&& echo $$p && break; done)
BIN := .venv/bin
STAMP := .venv/.ready

.PHONY: help setup demo test rehearse exact unit faults soak check bench clean

help:
	@echo "make setup     build .venv: SGLang and CUDA libraries, about 10 GB"
	@echo "make demo      a real model under a moving load: an A/B table and a report; QUICK=1 is shorter"
	@echo "make test      every test, the real engine included; ARGS go to pytest"
	@echo "make rehearse  the tests for a GPU on the CPU, with more kinds of servers than make test has"
	@echo "make exact     every feature of docs/exactness.md and every depth on every kind of draft, against a server without one"
	@echo "make unit      the package's tests that start no engine; ARGS go to pytest"
	@echo "make faults    what goes wrong, at length: dying processes, ten thousand aborts, odd requests"
	@echo "make soak      half an hour of mixed requests, audited; MINUTES=, TP=2, ALGORITHM=EAGLE3"
	@echo "make check     format, lint and types"
	@echo "make bench     what a decision, a round, a switch and a replay cost"
	@echo "make clean     remove .venv and everything that was made"

setup: $(STAMP)

$(STAMP): pyproject.toml requirements.lock
	@test -n "$(PYTHON)" || { echo "speckv: no Python 3.11 or 3.12 found (outlines_core, which sglang needs, has no wheel beyond); name one with: make PYTHON=/path/to/python3.12" >&2; exit 2; }
	@echo "setting up .venv with $(PYTHON): SGLang and CUDA libraries take about 10 GB of disk" >&2
	@test -x $(BIN)/python || $(PYTHON) -m venv .venv >&2
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check uv==0.13.9 >&2
	@$(BIN)/uv pip install --quiet --compile-bytecode --python $(BIN)/python -r requirements.lock >&2
	@$(BIN)/uv pip install --quiet --python $(BIN)/python --no-deps --editable . >&2
	@touch $(STAMP)

demo: $(STAMP)
	@$(BIN)/speckv demo $(if $(QUICK),--quick)

# A server's start keeps one core busy for half of its time, and much else waits: three processes
# leave two cores 6 % idle (13 to 19 minutes in all, two processes one more). Tests of one server stay together.
# Without a GPU the tests for one are rehearsed on the CPU engine.
SHARED := --dist loadgroup --no-loadscope-reorder
# Hundreds of processes import the same modules: compile them once, even where the caller's
# environment forbids it.
test rehearse exact unit faults: export PYTHONDONTWRITEBYTECODE :=

test: export SPECKV_REHEARSE ?= 1
test: $(STAMP)
	@$(BIN)/python -m pytest -n 3 $(SHARED) $(ARGS)

rehearse: export SPECKV_REHEARSE := all
rehearse: $(STAMP)
	@$(BIN)/python -m pytest -n 2 $(SHARED) tests/gpu tests/rehearsal tests/engine/test_gpu_scripts.py $(ARGS)

exact: export SPECKV_EXACT := all
exact: $(STAMP)
	@$(BIN)/python -m pytest -n 2 $(SHARED) tests/engine/test_exact.py tests/engine/test_lossless.py \
		tests/engine/test_rejection_sampling.py tests/engine/test_python_api.py tests/engine/test_trees.py \
		tests/engine/test_tensor_parallel.py $(ARGS)

unit: $(STAMP)
	@$(BIN)/python -m pytest -n 3 $(SHARED) tests/unit $(ARGS)

faults: export SPECKV_FAULTS := 1
faults: export SPECKV_EXAMPLES ?= 1000
faults: $(STAMP)
	@$(BIN)/python -m pytest -n 2 $(SHARED) tests/engine/test_faults.py tests/engine/test_deaths.py \
		tests/engine/test_tensor_parallel.py tests/engine/test_bad_requests.py \
		tests/unit/test_fuzz.py $(ARGS)

soak: $(STAMP)
	@$(BIN)/python benchmarks/soak.py --minutes $(or $(MINUTES),30) --tp $(or $(TP),1) \
		--algorithm $(or $(ALGORITHM),STANDALONE) --out out/soak$(if $(TP),-tp$(TP)).json

check: $(STAMP)
	@$(BIN)/ruff format --check .
	@$(BIN)/ruff check .
	@$(BIN)/mypy

bench: $(STAMP)
	@$(BIN)/python benchmarks/decision.py
	@$(BIN)/python benchmarks/round.py
	@$(BIN)/python benchmarks/switching.py
	@$(BIN)/python benchmarks/replay.py

clean:
	@rm -rf .venv out .pytest_cache .ruff_cache .mypy_cache .hypothesis
