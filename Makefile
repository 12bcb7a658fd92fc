# The front door. Two commands matter: `make reproduce` and `make test`.
PRESET ?= smoke
# By the environment, not in a command's text: nothing in these names is a command.
export PRESET RUN CLUSTER
PYTHON ?= python3

# Without compiled files every process parses torch anew (9 s instead of 3 s).
unexport PYTHONDONTWRITEBYTECODE
# An inherited non-interactive backend would silently drop every figure of the book.
unexport MPLBACKEND
# Waiting threads sleep rather than spin: beside another busy process, spinning made small networks ten times slower.
export OMP_WAIT_POLICY ?= PASSIVE
export PYDEVD_DISABLE_FILE_VALIDATION := 1

BIN := .venv/bin
SIDE_BY_SIDE := -n auto --dist loadfile

# One thread for each of those side by side, as preset smoke has: the cache and the last digits of a number depend on it.
test outputs: export OMP_NUM_THREADS := 1

.PHONY: help reproduce book test outputs bench lock clean

help:  ## what there is to make
	@sed -nE 's/^([a-z]+):[^#]*## (.*)/make \1\t\2/p' Makefile | expand -t 18

reproduce: .venv/ready  ## train (on CLUSTER), merge, measure at PRESET (smoke, cpu, paper, gpu), build the book
	@echo "1 of 2: the notebooks"
	@$(BIN)/python -m lab.bookkeeping.pipeline "$$PRESET" $(if $(CLUSTER),--cluster "$$CLUSTER")
	@echo "2 of 2: the book"
	@$(MAKE) --no-print-directory book

book: .venv/ready  ## build the HTML book from results/; RUN=name shows a run of your own
	@REBASIN_RUN="$$RUN" $(BIN)/python -m lab.report.build

test: .venv/ready  ## style, types, all tests, and the notebooks' stored outputs
	@echo "1 of 4: style"
	@$(BIN)/ruff check --quiet .
	@$(BIN)/ruff format --quiet --check .
	@echo "2 of 4: types"
	@$(BIN)/mypy
	@echo "3 of 4: tests"
	@$(BIN)/python -m pytest -rs $(SIDE_BY_SIDE) tests
	@echo "4 of 4: the notebooks, executed and compared with what they store"
	@$(BIN)/python -m pytest $(SIDE_BY_SIDE) --nbval --nbval-current-env --nbval-cell-timeout=300 \
	    --nbval-sanitize-with tests/nbval.cfg notebooks

outputs: .venv/ready  ## store anew what the repository keeps: the notebooks' outputs, the README's picture
	$(BIN)/python -m lab.report.stored

bench: .venv/ready  ## time the package beside floors and other packages: one table, some ten minutes
	@$(BIN)/python -m benchmarks.bench

lock: .venv/ready  ## add what pyproject.toml asks for to requirements.lock; UPGRADE=1 chooses all versions anew
	$(BIN)/uv pip compile -q --universal --python-version 3.11 --generate-hashes --extra test \
	    $(if $(UPGRADE),--upgrade) --no-header pyproject.toml -o requirements.lock

clean:  ## remove the built book and the executed copies; results and cached weights stay
	rm -rf _build

.venv/ready: requirements.lock pyproject.toml
	@echo "setting up .venv (about a minute)"
	@$(PYTHON) -m venv .venv
	@sed -n '/^uv==/,/# via/p' requirements.lock > .venv/uv.lock
	@$(BIN)/python -m pip install -q --require-hashes --no-deps -r .venv/uv.lock
	@$(BIN)/uv pip install -q --require-hashes -r requirements.lock
	@$(BIN)/uv pip install -q --no-deps --no-build-isolation -e .
	@touch $@
