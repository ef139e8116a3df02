PYTHON ?= python3
FASTA ?= examples/proteins.fasta
PLAN ?= build/demo.parquet
CASES ?= 3000000
SEED ?= 1
RUNS ?= 50
OLDEST ?= python3.10
NEWEST ?= python3.13
SECONDS ?= 60

BIN := $(CURDIR)/.venv/bin
CPP := $(shell find cpp benchmarks -name '*.[ch]pp')
BUILT_FROM := $(CPP) CMakeLists.txt pyproject.toml requirements-dev.txt
# The demonstration needs less than development, which serves it too.
INSTALLED := $(if $(wildcard .venv/dev),.venv/dev,.venv/cli)

export PATH := $(BIN):$(PATH)
export PIP_DISABLE_PIP_VERSION_CHECK := 1

.PHONY: demo test test-long lint docs format compare bench bench-quick bench-loading bench-job bench-cluster bench-tight kill-test bench-peers profile sanitize sanitize-kernel sanitize-threads sanitize-python fuzz wheel range range-torch range-transformers fuzz-records coverage mutate tidy mutate-python clean

## demo: pack FASTA=path and write the plan to PLAN=path
demo: $(INSTALLED)
	@mkdir -p build
	virnucpro pack $(FASTA) -o $(PLAN)

## test: the kernel's own tests, then those in Python
test: .venv/dev
	cmake --preset dev
	cmake --build --preset dev
	ctest --preset dev
	pytest

## test-long: more than 2**31 rows, minutes and 20 GB on disk
test-long: .venv/dev
	pytest tests -m long

## lint: styles and types
lint: .venv/dev
	ruff check
	ruff format --check
	mypy
	clang-format --dry-run --Werror $(CPP)

## docs: the reference from the docstrings, the command line's options and docs/*.md, as pages in
## build/docs; a reference to what is not there is an error
docs: .venv/dev
	@mkdir -p build
	typer virnucpro.cli utils docs --name virnucpro --title "Command line" --output build/command.md
	sphinx-build --quiet --fail-on-warning --keep-going --nitpicky docs build/docs

## format: bring all code into style
format: .venv/dev
	ruff check --fix
	ruff format
	clang-format -i $(CPP)

## compare: the kernel against the reference on CASES random cases from SEED, some of them on
## several threads, and on 200,000 examples through Python; the scanner of FASTA against the obvious
## reader on 200,000 texts
compare: .venv/dev
	cmake --preset dev
	cmake --build --preset dev
	build/dev/packing_test $(CASES) $(SEED)
	build/dev/packing_in_parts_test $$(($(CASES) / 15)) $(SEED)
	HYPOTHESIS_PROFILE=long pytest tests/unit/test_packing.py -k "reference or whole or unique_ids"
	SCANNER_CASES=200000 pytest tests/unit/test_scanner.py

## bench: native against Python, tables and plots into docs/; bench-quick: two minutes of it
bench: bench-peers
	python benchmarks/run.py

bench-quick: bench-peers
	python benchmarks/run.py --quick --output build

## bench-loading: tokenizing and the DataLoader on 100,000 proteins, five minutes; docs/loading.md
bench-loading: .venv/dev
	python benchmarks/loading.py

## bench-job: `virnucpro pack` on 1.5 million proteins and 50 million lengths, six minutes; docs/job.md
bench-job: .venv/dev
	python benchmarks/job.py

## bench-cluster: a Ray data set of 50 million rows, and the layout of trillions, a minute; docs/scale.md
bench-cluster: .venv/dev
	python benchmarks/cluster.py

## bench-tight: method="tight" against First-Fit Decreasing, a minute; docs/algorithm.md
bench-tight: .venv/dev
	python benchmarks/tight.py

## kill-test: stop RUNS runs of `virnucpro pack` at random moments and look at what is left
kill-test: .venv/dev
	python tests/kill.py $(RUNS)

# A peer that cannot be installed is left out.
bench-peers: .venv/dev
	-pip install --quiet --constraint requirements-dev.txt --requirement benchmarks/requirements.txt

## profile: the kernel's stages, and (with valgrind) the instructions that they take
profile: .venv/dev
	cmake --preset release
	cmake --build --preset release
	build/release/stages
	valgrind --tool=callgrind --callgrind-out-file=build/callgrind.out build/release/stages 1000000 1
	callgrind_annotate --auto=no --threshold=95 build/callgrind.out

# The interpreter is not built with the sanitizer, so that has to be loaded before it; what the
# interpreter never frees is no leak of ours. The editable install would come first.
SANITIZED := import sys, pytest; \
	sys.meta_path[:] = [f for f in sys.meta_path if "Editable" not in repr(f) and "Redirecting" not in repr(f)]; \
	import virnucpro.data._core as core; assert "build/sanitize" in core.__file__, core.__file__; \
	sys.exit(pytest.main(sys.argv[1:]))

# The tests of the kernel in which threads share small cases too.
KERNEL_TESTS := packing_in_parts_test allocation_test replay_lengths replay_fields replay_scanner
RUN_KERNEL_TESTS := --exclude-regex '^packing$$'

## sanitize: all of the three that follow
sanitize: sanitize-kernel sanitize-threads sanitize-python

## sanitize-kernel: the kernel's tests with AddressSanitizer and UndefinedBehaviorSanitizer
sanitize-kernel: .venv/dev
	cmake --preset sanitize
	cmake --build --preset sanitize --target $(KERNEL_TESTS)
	ctest --preset sanitize $(RUN_KERNEL_TESTS)

## sanitize-threads: the kernel's tests with ThreadSanitizer
sanitize-threads: .venv/dev
	cmake --preset thread-sanitize
	cmake --build --preset thread-sanitize --target $(KERNEL_TESTS)
	ctest --preset thread-sanitize $(RUN_KERNEL_TESTS)

## sanitize-python: the bindings' tests with AddressSanitizer and UndefinedBehaviorSanitizer
sanitize-python: .venv/dev
	rm -rf build/sanitize-python
	pip install --quiet --no-build-isolation --no-deps --target build/sanitize-python . \
		--config-settings build-dir=build/sanitize-wheel \
		--config-settings cmake.build-type=Debug \
		--config-settings cmake.define.CMAKE_CXX_FLAGS="-O1 -fsanitize=address,undefined -fno-sanitize=vptr"
	LD_PRELOAD="$$($(CXX) -print-file-name=libasan.so) $$($(CXX) -print-file-name=libubsan.so)" \
		ASAN_OPTIONS=detect_leaks=0 UBSAN_OPTIONS=halt_on_error=1 PYTHONMALLOC=malloc \
		PYTHONPATH=build/sanitize-python python -c '$(SANITIZED)' -p no:cacheprovider -q \
		tests/unit/test_packing.py tests/unit/test_records.py tests/unit/test_robustness.py \
		tests/unit/test_fuzz_records.py tests/unit/test_column_generation.py tests/unit/test_scanner.py \
		-k "not import_needs and not failed_allocations and not command and not solver and not no_torch \
		and not token_budget and not interrupted and not forks and not workers"

# libFuzzer is clang's. A third of the time is each target's, rounded up, as 0 would be without end.
FUZZ := -max_total_time=$$((($(SECONDS) + 2) / 3)) -max_len=256 -timeout=60 -rss_limit_mb=4096 -print_final_stats=1

## fuzz: the kernel against the obvious algorithm, and the scanner of FASTA against itself in pieces,
## for SECONDS, guided by what inputs reach; what fails is kept in build/fuzz/, and all that is worth
## keeping in build/fuzz/lengths/, fields/ and scanner/
fuzz: .venv/dev
	@printf 'int main(){}' | clang++ -x c++ -fsanitize=address - -o /dev/null 2> /dev/null || \
		{ echo "make: clang++ with its runtime is missing (on Debian: apt-get install clang libclang-rt-dev)" >&2; exit 1; }
	cmake --preset fuzz
	cmake --build --preset fuzz --target fuzz_lengths fuzz_fields fuzz_scanner
	cd build/fuzz && for target in lengths fields scanner; do \
		mkdir -p $$target && ./fuzz_$$target $(FUZZ) $$target $(CURDIR)/cpp/tests/corpus/$$target || exit 1; done

# What is built apart from the development's own environment is built with the same tools.
PINNED := PIP_CONSTRAINT=$(CURDIR)/requirements-dev.txt
TEST_TOOLS := pytest hypothesis duckdb pandas polars pysam biopython
# The clean environment's own programs, and no others.
CLEAN := PATH=$(CURDIR)/build/clean/bin

## wheel: an sdist, a wheel made from it alone and repaired, and its tests where no compiler is
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
	$(CLEAN) $(PINNED) pip install --quiet --only-binary :all: dist/*.whl pytest hypothesis
	$(CLEAN) python tests/installed.py core
	$(CLEAN) $(PINNED) pip install --quiet --only-binary :all: "$$(echo dist/*.whl)[cli,tight]" \
		$(TEST_TOOLS)
	$(CLEAN) python tests/installed.py files

# The newest versions, or with --resolution lowest-direct the oldest, and none but wheels.
UV_INSTALL := uv pip install --quiet --no-build

## range: the tests on the OLDEST Python with the oldest of all that pyproject.toml names, and on the
## NEWEST with the newest; what warns of its own age may do so
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
	$(UV_INSTALL) --python build/range/oldest $(TEST_TOOLS)
	$(UV_INSTALL) --python build/range/oldest --no-deps build/range/first/*.whl
	$(UV_INSTALL) --python build/range/newest "$$(echo build/range/last/*.whl)[cli,tight]" \
		$(TEST_TOOLS)
	build/range/oldest/bin/python tests/installed.py files -W default::DeprecationWarning \
		-W default::PendingDeprecationWarning
	build/range/newest/bin/python tests/installed.py files

# The oldest transformers that packed_attention.py names, with the torch that is developed with.
TRANSFORMERS := 5.17.0
## range-transformers: the tests of models on the oldest transformers
range-transformers: .venv/dev
	rm -rf build/range-transformers
	python -m venv build/range-transformers
	grep -v ^transformers= requirements-dev.txt > build/range-transformers/constraints.txt
	build/range-transformers/bin/pip install --quiet -c build/range-transformers/constraints.txt \
		torch numpy isal backports.zstd fair-esm pytest hypothesis transformers==$(TRANSFORMERS) \
		scikit-build-core pybind11 cmake ninja
	build/range-transformers/bin/pip install --quiet --no-build-isolation --no-deps .
	cd tests && ../build/range-transformers/bin/python -m pytest -p no:cacheprovider \
		unit/test_packed_attention.py unit/test_models.py

## range-torch: the calls of varlen attention against what each release of torch declares, whose wheels
## for macOS are downloaded into build/torch, 600 MB
range-torch: .venv/dev
	python tests/varlen_signatures.py build/torch

## fuzz-records: odd records, lengths and parameters for SECONDS, guided by what they reach; what
## fails is kept in build/fuzz-records/, and all that is worth keeping in build/fuzz-records/corpus/
fuzz-records: .venv/dev
	pip install --quiet atheris==3.0.0 || \
		{ echo "make: atheris 3.0.0 cannot be had here; it is for Python 3.11 to 3.13 on Linux" >&2; exit 1; }
	mkdir -p build/fuzz-records/corpus
	python tests/fuzz_records.py -max_total_time=$(SECONDS) -max_len=1024 -len_control=0 -timeout=60 \
		-artifact_prefix=build/fuzz-records/ build/fuzz-records/corpus tests/corpus/records

API_TESTS := $(addprefix tests/unit/, test_packing.py test_records.py test_robustness.py test_samplers.py \
	test_arrow_ids.py test_token_budget.py \
	test_column_generation.py::test_dicts_and_files test_column_generation.py::test_without_the_solver \
	test_plan_file.py::test_saved_plans_are_loaded test_plan_file.py::test_saving_without_pyarrow_says_so)

## coverage: code and branches that tests reach; an error where any of the kernel, or of the Python
## API, is missed
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
	HYPOTHESIS_PROFILE=few coverage run -m pytest -q $(API_TESTS)
	coverage report

## mutate: faults put into the kernel, one by one; an error where its tests see less than nine tenths
mutate: .venv/dev
	python tests/mutate_kernel.py

## tidy: clang-tidy, ten minutes
tidy: .venv/dev
	clang-tidy --quiet cpp/packing/*.cpp cpp/fasta/*.cpp cpp/tests/*.cpp -- -std=c++20 -Icpp -Wall -Wextra -Wconversion

# In a copy, since the mutants are written beside the sources and need the kernel there. The
# editable install would come first.
MUTATED := import sys; \
	sys.meta_path[:] = [f for f in sys.meta_path if "Editable" not in repr(f) and "Redirecting" not in repr(f)]; \
	from mutmut.__main__ import cli; cli()

## mutate-python: changes of the Python API that its tests do not notice, half an hour
mutate-python: .venv/dev
	rm -rf build/mutate
	mkdir -p build/mutate
	cp -r src tests pyproject.toml build/mutate
	cp "$$(python -c 'from virnucpro.data import _core; print(_core.__file__)')" build/mutate/src/virnucpro/data
	cd build/mutate && HYPOTHESIS_PROFILE=few python -c '$(MUTATED)' run --max-children 1
	cd build/mutate && mutmut results

clean:
	rm -rf .venv build dist

.venv/bin/pip:
	$(PYTHON) -m venv .venv

.venv/cli: .venv/bin/pip $(BUILT_FROM)
	pip install --quiet --constraint requirements-dev.txt scikit-build-core pybind11 cmake ninja
	pip install --quiet --constraint requirements-dev.txt --no-build-isolation --editable '.[cli]'
	@touch $@

.venv/dev: .venv/bin/pip $(BUILT_FROM)
	pip install --quiet --requirement requirements-dev.txt
	pip install --quiet --no-build-isolation --no-deps --editable . \
		--config-settings cmake.define.CMAKE_COMPILE_WARNING_AS_ERROR=ON
	@touch $@
