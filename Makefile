PYTHON ?= python3
FASTA ?= examples/proteins.fasta
PLAN ?= build/demo.parquet
CASES ?= 3000000
SEED ?= 1
RUNS ?= 50
LEVELS ?= 20
DAMAGED ?= 2000
FAULTS ?= 3
OLDEST ?= python3.10
NEWEST ?= python3.13
PYTHONS ?= python3.10 python3.11 python3.12 python3.13
SECONDS ?= 60
STEP ?= packers
GPU_PYTHON ?= python3
GPU_OPTIONS ?=

WINDOWS := $(filter Windows_NT,$(OS))
BIN := $(CURDIR)/.venv/$(if $(WINDOWS),Scripts,bin)
CODE := $(shell git ls-files '*.py' '*.pyi' '*.cpp' '*.hpp')
CPP := $(shell find cpp benchmarks -name '*.[ch]pp')
BUILT_FROM := $(CPP) CMakeLists.txt pyproject.toml requirements-dev.txt tools/rebuild_on_import.py
LOCK := requirements-dev.txt
INSTALL := python -m pip install --quiet --constraint $(LOCK)
# `make demo` requires less than development, but uses that environment if it exists.
INSTALLED := $(if $(wildcard .venv/dev),.venv/dev,.venv/cli)

export PATH := $(BIN)$(if $(WINDOWS),;,:)$(PATH)
export PIP_DISABLE_PIP_VERSION_CHECK := 1

.DEFAULT_GOAL := help
.PHONY: help demo test test-core test-long lint lint-workflows docs format lock compare bench-all bench bench-quick bench-gpu signal-test embed-test limit-test damage-test fault-test bench-peers profile sanitize sanitize-kernel sanitize-threads sanitize-python fuzz wheel sdist platform-wheels release-test range range-torch range-transformers fuzz-records coverage mutate tidy mutate-python clean

## help: list all targets
help:
	@awk -F ': ' '/^## [a-z-]+: / { name = substr($$1, 4); sub(/^[^:]*: /, ""); printf "%-20s %s\n", name, $$0 }' $(firstword $(MAKEFILE_LIST))

## demo: pack FASTA=path and write the plan to PLAN=path
demo: $(INSTALLED)
	@mkdir -p build
	virnucpro pack $(FASTA) -o $(PLAN)

## test: run the tests of the kernel (ctest), then the tests in Python (pytest, in two processes)
test: .venv/dev
	cmake --preset dev
	cmake --build --preset dev
	ctest --preset dev
	OMP_NUM_THREADS=1 pytest -n 2 --dist loadfile

## test-core: build and install the package with NumPy alone, and run the tests that need no more
test-core:
	rm -rf build/core build/core-wheel
	$(PYTHON) -m venv build/core
	build/core/bin/python -m pip install --quiet --constraint $(LOCK) pip
	build/core/bin/python -m pip install --quiet --constraint $(LOCK) --group build --group test-core
	PATH=$(CURDIR)/build/core/bin:$$PATH build/core/bin/python -m pip install --quiet --constraint $(LOCK) \
		--no-build-isolation --config-settings build-dir=build/core-wheel .
	build/core/bin/python tests/installed.py core -q

## test-long: run the tests on more than 2**31 rows, and on thousands of proteins (minutes, 20 GB on disk)
test-long: .venv/dev
	pytest tests -m long

## lint: check style, types, imports and workflows
lint: .venv/dev lint-workflows
	ruff check
	ruff format --check
	mypy
	lint-imports
	@wc -l $(CODE) | awk '$$1 > 450 && $$2 != "total" { print $$2 ": " $$1 " lines, more than 450"; bad = 1 } END { exit bad }'
	clang-format --dry-run --Werror $(CPP)

## lint-workflows: check .github/workflows with actionlint
lint-workflows: .venv/dev
	actionlint -shellcheck= .github/workflows/*.yml

## docs: build the documentation in build/docs; warnings are errors
docs: .venv/dev
	@mkdir -p build
	python tools/command_page.py > build/command.md
	sphinx-build --quiet --fail-on-warning --keep-going --nitpicky docs build/docs

## format: format all code
format: .venv/dev
	ruff check --fix
	ruff format
	clang-format -i $(CPP)

## lock: pin new dependencies in requirements-dev.txt; with UPGRADE=1, upgrade all to the newest versions
lock: .venv/dev
	uv pip compile pyproject.toml --universal --python-version 3.10 --all-extras --group dev --group peers \
		--strip-extras --no-annotate --custom-compile-command "make lock" --quiet $(if $(UPGRADE),--upgrade) \
		--output-file $(LOCK)

## compare: compare the kernel and the API with the references on random cases (CASES, SEED)
compare: .venv/dev
	cmake --preset dev
	cmake --build --preset dev
	build/dev/packing_test $(CASES) $(SEED)
	build/dev/packing_test $$(($(CASES) / 15)) $(SEED) 1
	HYPOTHESIS_PROFILE=long pytest tests -m compare

## bench-all: measure everything that has no result from this commit; writes docs/performance.md (under an hour)
bench-all: bench-peers
	python benchmarks/bench.py

## bench: measure one STEP again: packers, embedding, job, loading, targets, growth, tight, ...
bench: bench-peers
	python benchmarks/bench.py --again $(STEP)

## bench-quick: run all steps on small inputs and write the page into build/bench-quick (two minutes)
bench-quick: bench-peers
	python benchmarks/bench.py --again --quick

## bench-gpu: measure ESM-2 on a GPU with GPU_PYTHON, which needs torch with CUDA (six minutes)
bench-gpu:
	$(GPU_PYTHON) benchmarks/gpu.py $(GPU_OPTIONS)

## signal-test: end RUNS runs of each command by signals and check what is left (minutes)
signal-test: .venv/dev
	python tests/signals.py $(RUNS)

## embed-test: kill runs of `virnucpro embed` RUNS times, and go on each time (minutes)
embed-test: .venv/dev
	OMP_NUM_THREADS=1 python tests/embed_faults.py $(RUNS)

## limit-test: run each command under LEVELS limits of memory, file size and open files (minutes)
limit-test: .venv/dev
	python tests/limits.py $(LEVELS)

## damage-test: damage each plan and table DAMAGED times and check that the damage is named (minutes)
damage-test: .venv/dev
	python tests/damaged_plans.py $(DAMAGED)
	python tests/damaged_tables.py $(DAMAGED)

## fault-test: lose a worker and a node in each stage of packing on simulated clusters (an hour)
fault-test: .venv/dev
	python tests/cluster_faults.py $(FAULTS)

# Their dependencies conflict with those of development, and making batches needs none of them.
ALONE := axolotl==0.19.0 nemo-automodel==0.7.0
# If the peers cannot be installed, the benchmarks run without them.
bench-peers: .venv/dev
	-$(INSTALL) --group peers
	-python -m pip install --quiet --no-deps --only-binary :all: $(ALONE)

## profile: measure the stages of the kernel, and count instructions if valgrind is installed
profile: .venv/dev
	cmake --preset release
	cmake --build --preset release
	build/release/stages
	valgrind --tool=callgrind --callgrind-out-file=build/callgrind.out build/release/stages 1000000 1
	callgrind_annotate --auto=no --threshold=95 build/callgrind.out

# The interpreter is built without the sanitizer, so the sanitizer must be loaded before it. Leaks are
# not detected, since the interpreter does not free all its memory at exit. The finder of the editable
# install is removed, since it would take precedence.
SANITIZED := import sys, pytest; \
	sys.meta_path[:] = [f for f in sys.meta_path if "Editable" not in repr(f) and "Redirecting" not in repr(f)]; \
	import virnucpro.kernel._core as core; assert "build/sanitize" in core.__file__, core.__file__; \
	sys.exit(pytest.main(sys.argv[1:]))

# The tests of the kernel in which threads share small cases too.
KERNEL_TESTS := packing_test allocation_test replay_lengths replay_fields replay_scanner
RUN_KERNEL_TESTS := --exclude-regex '^packing$$'

## sanitize: run sanitize-kernel, sanitize-threads and sanitize-python
sanitize: sanitize-kernel sanitize-threads sanitize-python

## sanitize-kernel: run the tests of the kernel with AddressSanitizer and UndefinedBehaviorSanitizer
sanitize-kernel: .venv/dev
	cmake --preset sanitize
	cmake --build --preset sanitize --target $(KERNEL_TESTS)
	ctest --preset sanitize $(RUN_KERNEL_TESTS)

## sanitize-threads: run the tests of the kernel with ThreadSanitizer
sanitize-threads: .venv/dev
	cmake --preset thread-sanitize
	cmake --build --preset thread-sanitize --target $(KERNEL_TESTS)
	ctest --preset thread-sanitize $(RUN_KERNEL_TESTS)

## sanitize-python: run the tests of the bindings with AddressSanitizer and UndefinedBehaviorSanitizer
sanitize-python: .venv/dev
	rm -rf build/sanitize-python
	pip install --quiet --no-build-isolation --no-deps --target build/sanitize-python . \
		--config-settings build-dir=build/sanitize-wheel \
		--config-settings cmake.build-type=Debug \
		--config-settings cmake.define.CMAKE_CXX_FLAGS="-O1 -fsanitize=address,undefined -fno-sanitize=vptr"
	LD_PRELOAD="$$($(CXX) -print-file-name=libasan.so) $$($(CXX) -print-file-name=libubsan.so)" \
		ASAN_OPTIONS=detect_leaks=0 UBSAN_OPTIONS=halt_on_error=1 PYTHONMALLOC=malloc \
		PYTHONPATH=build/sanitize-python python -c '$(SANITIZED)' -p no:cacheprovider -q \
		tests/kernel tests/data tests/tight/test_column_generation.py tests/tight/test_method.py \
		-m "not process and not slow and not long"

# libFuzzer is part of clang. Each of the three targets gets a third of the time, rounded up, since 0
# means no limit.
FUZZ := -max_total_time=$$((($(SECONDS) + 2) / 3)) -max_len=256 -timeout=60 -rss_limit_mb=4096 -print_final_stats=1

## fuzz: fuzz the kernel for SECONDS; failing inputs are kept in build/fuzz
fuzz: .venv/dev
	@printf 'int main(){}' | clang++ -x c++ -fsanitize=address - -o /dev/null 2> /dev/null || \
		{ echo "make: clang++ with its runtime is missing (on Debian: apt-get install clang libclang-rt-dev)" >&2; exit 1; }
	cmake --preset fuzz
	cmake --build --preset fuzz --target fuzz_lengths fuzz_fields fuzz_scanner
	cd build/fuzz && for target in lengths fields scanner; do \
		mkdir -p $$target && ./fuzz_$$target $(FUZZ) $$target $(CURDIR)/cpp/tests/corpus/$$target || exit 1; done

# Builds outside .venv use the pinned versions, too.
PINNED := PIP_CONSTRAINT=$(CURDIR)/$(LOCK)
# Only the programs of the clean environment are on the PATH.
CLEAN := PATH=$(CURDIR)/build/clean/bin

## wheel: build the sdist and the wheel into dist/, and test the wheel without a compiler
wheel: .venv/dev
	rm -rf build/dist build/clean dist
	$(PINNED) python -m build --outdir build/dist
	mkdir dist
	mv build/dist/*.tar.gz dist
	auditwheel repair --wheel-dir dist build/dist/*.whl
	auditwheel show dist/*.whl
	python -m venv build/clean
	for tool in cc c++ gcc g++ clang clang++ cmake ninja; do \
		! $(CLEAN) command -v $$tool || exit 1; done
	$(CLEAN) $(PINNED) python -m pip install --quiet pip
	$(CLEAN) $(PINNED) pip install --quiet --only-binary :all: dist/*.whl --group test-core
	$(CLEAN) python tests/installed.py core
	$(CLEAN) $(PINNED) pip install --quiet --only-binary :all: "$$(echo dist/*.whl)[cli,tight]" \
		--group test-files
	$(CLEAN) python tests/installed.py files

## sdist: build the source distribution into dist/
sdist: .venv/wheels
	python -m build --sdist --outdir dist

## platform-wheels: build and test the wheels of this platform with cibuildwheel, into dist/
platform-wheels: .venv/wheels
	python -m cibuildwheel --output-dir dist


# Installs the newest versions, or the oldest with --resolution lowest-direct, and only from wheels.
UV_INSTALL := uv pip install --quiet --no-build

## range: run the tests on OLDEST Python with the oldest dependencies, on NEWEST with the newest
range: .venv/dev range-torch range-transformers
	rm -rf build/range
	uv venv --quiet --no-python-downloads --python $(OLDEST) build/range/oldest
	uv venv --quiet --no-python-downloads --python $(NEWEST) build/range/newest
	sed -n '/^requires = /s/[^"]*"\([^"]*\)"[^"]*/\1\n/gp' pyproject.toml > build/range/build.txt
	$(UV_INSTALL) --python build/range/oldest --resolution lowest-direct -r build/range/build.txt
	uv build --quiet --wheel --python build/range/oldest --no-build-isolation -o build/range/first .
	uv build --quiet --wheel --python build/range/newest -o build/range/last .
	$(UV_INSTALL) --python build/range/oldest --resolution lowest-direct \
		-r pyproject.toml --extra cli --extra tight
	$(UV_INSTALL) --python build/range/oldest --group test-files
	$(UV_INSTALL) --python build/range/oldest --no-deps build/range/first/*.whl
	$(UV_INSTALL) --python build/range/newest "$$(echo build/range/last/*.whl)[cli,tight]" \
		--group test-files
	build/range/oldest/bin/python tests/installed.py files -W default::DeprecationWarning \
		-W default::PendingDeprecationWarning
	build/range/newest/bin/python tests/installed.py files

EXTRAS := none fasta cli tight torch esm ray cli,esm
## release-test: build the wheels of PYTHONS from the sdist, and use each with each extra (ten minutes)
release-test: .venv/dev
	rm -rf build/release
	uv build --quiet --sdist --out-dir build/release .
	for python in $(PYTHONS); do \
		uv build --quiet --wheel --python $$python --out-dir build/release/$$python build/release/*.tar.gz \
			|| exit 1; \
		for extras in $(EXTRAS); do \
			rm -rf build/release/clean; \
			uv venv --quiet --no-python-downloads --python $$python build/release/clean && \
			$(UV_INSTALL) --python build/release/clean \
				"$$(echo build/release/$$python/*.whl)[$${extras#none}]" && \
			build/release/clean/bin/python tests/use_extra.py $$extras || exit 1; done; done

# The oldest transformers that model/attention.py supports, with the pinned torch.
TRANSFORMERS := 5.17.0
## range-transformers: run the tests of models with the oldest transformers
range-transformers: .venv/dev
	rm -rf build/range-transformers
	python -m venv build/range-transformers
	grep -v -E '^(transformers|tokenizers|huggingface-hub)=' $(LOCK) > build/range-transformers/constraints.txt
	build/range-transformers/bin/pip install --quiet -c build/range-transformers/constraints.txt \
		torch numpy isal backports.zstd fair-esm pytest hypothesis transformers==$(TRANSFORMERS) \
		scikit-build-core pybind11 cmake ninja
	build/range-transformers/bin/pip install --quiet --no-build-isolation --no-deps .
	cd tests && ../build/range-transformers/bin/python -m pytest -p no:cacheprovider \
		model/test_attention.py model/test_attention_kernels.py model/test_attention_refusals.py \
		model/test_check_packed.py model/test_inputs.py

## range-torch: check varlen attention against each release of torch (downloads 600 MB into build/torch)
range-torch: .venv/dev
	python tests/varlen_signatures.py build/torch

## fuzz-records: fuzz records, lengths and parameters for SECONDS; failures are kept in build/fuzz-records
fuzz-records: .venv/dev
	pip install --quiet atheris==3.0.0 || \
		{ echo "make: atheris 3.0.0 cannot be installed; it requires Python 3.11 to 3.13 on Linux" >&2; exit 1; }
	mkdir -p build/fuzz-records/corpus
	python tests/fuzz_records.py -max_total_time=$(SECONDS) -max_len=1024 -len_control=0 -timeout=60 \
		-artifact_prefix=build/fuzz-records/ build/fuzz-records/corpus tests/corpus/records

# The tests of kernel and data, as in [tool.mutmut].
API_TESTS := tests/data tests/kernel tests/files/test_arrow_ids.py tests/files/test_saved_plan.py \
	tests/tight/test_method.py

## coverage: measure code and branch coverage of the tests; below 100 % is an error
coverage: .venv/dev
	@command -v clang++ llvm-profdata llvm-cov > /dev/null || \
		{ echo "make: clang++ or llvm is missing (on Debian: apt-get install clang libclang-rt-dev llvm)" >&2; exit 1; }
	cmake --preset coverage
	cmake --build --preset coverage --target $(KERNEL_TESTS)
	rm -f build/coverage/*.profraw
	LLVM_PROFILE_FILE=$(CURDIR)/build/coverage/%p.profraw \
		ctest --preset coverage $(RUN_KERNEL_TESTS)
	llvm-profdata merge -o build/coverage/all.profdata build/coverage/*.profraw
	llvm-cov export -instr-profile build/coverage/all.profdata build/coverage/$(firstword $(KERNEL_TESTS)) \
		$(KERNEL_TESTS:%=-object build/coverage/%) cpp/packing cpp/fasta | python tests/kernel_coverage.py
	HYPOTHESIS_PROFILE=few coverage run -m pytest -q -m "not process and not long" $(API_TESTS)
	coverage report

## mutate: plant bugs in the kernel, one at a time; the tests must detect 90 %
mutate: .venv/dev
	python tests/mutate_kernel.py

## tidy: run clang-tidy (ten minutes)
tidy: .venv/dev
	clang-tidy --quiet cpp/packing/*.cpp cpp/fasta/*.cpp cpp/tests/*.cpp -- -std=c++20 -Icpp -Wall -Wextra -Wconversion

# Runs in a copy, since mutants are written beside the sources and need the kernel there. The finder
# of the editable install is removed, since it would take precedence.
MUTATED := import sys; \
	sys.meta_path[:] = [f for f in sys.meta_path if "Editable" not in repr(f) and "Redirecting" not in repr(f)]; \
	from mutmut.__main__ import cli; cli()

## mutate-python: list the mutants of the Python API that no test detects (half an hour)
mutate-python: .venv/dev
	rm -rf build/mutate
	mkdir -p build/mutate
	cp -r docs src tests pyproject.toml build/mutate
	cp "$$(python -c 'from virnucpro.kernel import _core; print(_core.__file__)')" build/mutate/src/virnucpro/kernel
	cd build/mutate && HYPOTHESIS_PROFILE=few python -c '$(MUTATED)' run --max-children 1
	cd build/mutate && mutmut results

## clean: remove the environment and all build output
clean:
	rm -rf .venv build dist

.venv/pyvenv.cfg:
	$(PYTHON) -m venv .venv

# pip supports dependency groups from version 25.1 on.
.venv/cli: .venv/pyvenv.cfg $(BUILT_FROM)
	$(INSTALL) pip
	$(INSTALL) --group build
	$(INSTALL) --no-build-isolation --editable '.[cli]'
	@touch $@

.venv/dev: .venv/pyvenv.cfg $(BUILT_FROM)
	$(INSTALL) pip
	$(INSTALL) --group dev
	$(INSTALL) --no-build-isolation --editable '.[cli,esm,ray,tight]' \
		--config-settings cmake.define.CMAKE_COMPILE_WARNING_AS_ERROR=ON \
		--config-settings build-dir=.venv/build \
		--config-settings editable.rebuild=true \
		--config-settings editable.verbose=false
	site=$$(python -c 'import sysconfig; print(sysconfig.get_path("purelib"))') && \
		cp tools/rebuild_on_import.py $$site && \
		echo 'import rebuild_on_import' > $$site/rebuild_on_import.pth
	@touch $@

# cibuildwheel and build install the build dependencies into their own environments.
.venv/wheels: .venv/pyvenv.cfg
	$(INSTALL) pip
	$(INSTALL) --group wheels
	@touch $@
