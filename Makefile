# One word each; `make check` is what CI runs. Tools come from `pip install -c constraints.txt ".[dev]"`.
# RAYMARCH_CUDA = AUTO | ON | OFF and RAYMARCH_CUDA_ARCHS are read by the build (setup.py).
# TESTS narrows `test`, and with it `check`: make test TESTS=python_tests/test_rays.py
PYTHON ?= python
TESTS ?=
SOURCES = $(shell find csrc -name '*.h' -o -name '*.cpp' -o -name '*.cu' -o -name '*.cuh')

.PHONY: check fix format lint types build test docs wheel proof emulate resources archs gpu

check: format lint types docs build test
	$(PYTHON) -m bench.stubs --check
	$(PYTHON) -m bench.resources --check

fix:
	clang-format -i $(SOURCES)
	ruff check --fix-only -q .
	ruff format -q .
	$(PYTHON) -m bench.stubs

format:
	clang-format --dry-run -Werror $(SOURCES)
	ruff format --check .

lint:
	ruff check .

types:
	mypy raymarch bench

build:
	$(PYTHON) setup.py -q build_ext --inplace

test:
	$(PYTHON) -m pytest -q $(TESTS)

# The site, strictly: a dead link, a page outside the navigation or a docstring that does not parse is an error.
docs:
	NO_MKDOCS_2_WARNING=1 $(PYTHON) -m mkdocs build --strict --quiet

# The source archive, and from it the wheel, into dist/. Nothing of the checkout but what the archive holds.
wheel:
	$(PYTHON) -m build --outdir dist

# Random cases, error tables, sanitizers and planted faults -> docs/numerics.md. Takes an hour.
proof:
	$(PYTHON) -m bench.proof

# The op tests on the CUDA kernels, run by the CPU (csrc/emulator). Takes five minutes.
emulate:
	$(PYTHON) -m bench.proof emulate --order backward --no-record

# Registers, stack and spills of every kernel -> bench/resources.txt
resources:
	$(PYTHON) -m bench.resources

# Whether every kernel compiles for every supported architecture; the result is thrown away.
archs:
	$(PYTHON) -m bench.resources --archs 80,86,89,90

# Everything that needs a GPU: builds, tests, measures, writes bench/results/.
gpu:
	bench/device.sh
