PYTHON ?= python3
BIN := .venv/bin
REQUIREMENTS := base export upstream-needs dev

.PHONY: setup demo test check bench gpu-check clean

STEP := kernels/decoder_step

setup: .venv/installed $(STEP)/libdecoder_step.so

# One resolver run for all pins, so that nothing pulls another torch; upstream on top without its requirements; and this checkout itself,
# editable, so that `musiclm_deploy` and the command `musiclm` work from every folder and in every subprocess.
.venv/installed: setup.py pyproject.toml $(wildcard requirements/*.txt) | $(BIN)/python
	$(BIN)/pip install -q $(REQUIREMENTS:%=-r requirements/%.txt)
	$(BIN)/pip install -q --no-deps -r requirements/upstream.txt
	$(BIN)/pip install -q --no-deps -e .
	touch $@

# The install above builds it as well; this builds it again after a change. Without a compiler everything runs, slower.
$(STEP)/libdecoder_step.so: $(wildcard $(STEP)/*.cpp $(STEP)/*.h) | .venv/installed
	$(BIN)/python setup.py -q build_ext --inplace

$(BIN)/python:
	$(PYTHON) -m venv .venv

demo: setup
	$(BIN)/python demo/demo.py

test: setup
	$(BIN)/pytest -q -n auto --maxprocesses 4 --dist loadgroup

check: setup
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/pyright

# matplotlib, for the picture, is of the extra `demo`.
bench: setup
	$(BIN)/pip install -q -r requirements/demo.txt
	$(BIN)/python -m benchmarks.run

# Where there is an NVIDIA GPU: kernels and tokens against the CPU's, then times; at upstream's README size and with 300 M parameters a stage.
gpu-check: setup
	$(BIN)/pip install -q "cuda-python>=13,<14"
	$(BIN)/python -m benchmarks.gpu --size readme
	$(BIN)/python -m benchmarks.gpu --size 300m --weights fp16

clean:
	rm -rf build dist *.egg-info $(STEP)/*.so .hypothesis .pytest_cache .ruff_cache
	find . -name __pycache__ -not -path './.venv/*' -exec rm -rf {} +
