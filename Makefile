# The front door. Two commands matter: `make reproduce` and `make test`.
PRESET ?= smoke
PYTHON ?= python3

# Without compiled files every notebook kernel parses torch anew (9 s instead of 3 s).
unexport PYTHONDONTWRITEBYTECODE
# An inherited non-interactive backend would silently drop every figure of the book.
unexport MPLBACKEND
# Waiting threads sleep rather than spin: beside another busy process, spinning made small networks ten times slower.
export OMP_WAIT_POLICY ?= PASSIVE
export PYDEVD_DISABLE_FILE_VALIDATION := 1

BIN := .venv/bin

.PHONY: reproduce book test outputs lock clean

reproduce: .venv/ready  ## train, merge, evaluate at PRESET (smoke, cpu, gpu), then build the book
	$(BIN)/python -m lab.bookkeeping.pipeline $(PRESET)
	$(MAKE) --no-print-directory book

book: .venv/ready  ## build the HTML book from results/; RUN=name shows a run of your own
	REBASIN_RUN=$(RUN) $(BIN)/python -m lab.report.build

test: .venv/ready  ## all tests, the notebooks' stored outputs included
	$(BIN)/ruff check .
	$(BIN)/python -m pytest tests
	$(BIN)/python -m pytest --nbval --nbval-current-env --nbval-cell-timeout=300 \
	    --nbval-sanitize-with tests/nbval.cfg notebooks

outputs: .venv/ready  ## store anew what the repository keeps: the notebooks' outputs, the README's picture
	$(BIN)/python -m lab.report.stored

lock: .venv/ready  ## choose dependency versions anew
	$(BIN)/uv pip compile -q --universal --python-version 3.11 --generate-hashes --extra test --upgrade \
	    --no-header pyproject.toml -o requirements.lock

clean:  ## remove the built book and the run's intermediate files; keeps results and cached weights
	rm -rf _build

.venv/ready: requirements.lock pyproject.toml
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install -q uv
	$(BIN)/uv pip install -q --require-hashes -r requirements.lock
	$(BIN)/uv pip install -q --no-deps -e .
	touch $@
