PYTHON ?= python3
BIN := .venv/bin
REQUIREMENTS := base export upstream-needs serve dev

.PHONY: setup demo test check bench embed gpu-check clean

STEP := kernels/decoder_step

setup: .venv/installed $(STEP)/libdecoder_step.so

# One resolver run for all pins, so that nothing pulls another torch; upstream on top without its requirements; and this checkout itself,
# editable, so that `musiclm_deploy` and the command `musiclm` work from every folder and in every subprocess.
define install
	$(1)/bin/pip install -q $(REQUIREMENTS:%=-r requirements/%.txt)
	$(1)/bin/pip install -q --no-deps -r requirements/upstream.txt
	$(1)/bin/pip install -q --no-deps -e .
endef

.venv/installed: setup.py pyproject.toml $(wildcard requirements/*.txt) | $(BIN)/python
	$(call install,.venv)
	touch $@

# The install above builds it as well; this builds it again after a change. Without a compiler everything runs, slower.
$(STEP)/libdecoder_step.so: $(wildcard $(STEP)/*.cpp $(STEP)/*.h) | .venv/installed
	$(BIN)/python setup.py -q build_ext --inplace

$(BIN)/python:
	$(PYTHON) -m venv .venv

demo: setup
	$(BIN)/python demo/demo.py

test: setup
	$(BIN)/pytest -q -n auto --maxprocesses 4 --dist loadgroup --no-loadscope-reorder -m "not nightly and not realtime"
	$(BIN)/pytest -q -m "realtime and not nightly"

# Of C and C++ what embed/.clang-format says; other versions than 14 lay out some lines otherwise.
FORMATTER := $(if $(findstring version 14.,$(shell clang-format --version 2>/dev/null)),clang-format)
FORMATTED = $(filter-out %_tables.h,$(shell find embed -name '*.[ch]' -o -name '*.cpp'))

check: setup
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/pyright
	$(if $(FORMATTER),$(FORMATTER) --dry-run -Werror $(FORMATTED))

# libmusiclm, which needs cmake, a compiler and nlohmann-json3-dev; `make test` builds and tests it as well, where they are.
embed: setup
	cmake -S embed -B build/embed -DMUSICLM_TESTS=ON
	cmake --build build/embed -j2
	MUSICLM_EMBED=$(CURDIR)/build/embed $(BIN)/pytest -q tests/test_embed*.py

bench: setup
	$(BIN)/python -m benchmarks.run

# An environment of its own, where onnxruntime-gpu stands in place of onnxruntime: each overwrites files of the other, and `make test` is for
# the one in .venv. What calls CUDA, cuda-bindings, is among the requirements of both.
.venv-gpu/installed: setup.py pyproject.toml $(wildcard requirements/*.txt)
	$(PYTHON) -m venv .venv-gpu
	$(call install,.venv-gpu)
	.venv-gpu/bin/pip uninstall -q -y onnxruntime
	.venv-gpu/bin/pip install -q -r requirements/gpu.txt
	touch $@

# What an NVIDIA GPU makes of both sizes: right first, then timed. Where there is none their bundles are made, and it ends with status 1.
GPU := $(shell nvidia-smi -L 2>/dev/null)
gpu-check: setup $(if $(GPU),.venv-gpu/installed)
	$(if $(GPU),.venv-gpu/bin,$(BIN))/python -m benchmarks.gpu --size readme --size 300m

clean:
	rm -rf build dist *.egg-info $(STEP)/*.so .hypothesis .schemathesis .pytest_cache .ruff_cache
	find . -name __pycache__ -not -path './.venv*/*' -exec rm -rf {} +
