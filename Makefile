# make demo | make test | make test-slow | make lint ; each works alone on a fresh machine.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
export PIP_DISABLE_PIP_VERSION_CHECK = 1


.PHONY: help install demo test test-avx2 test-gpu test-slow lint format docs bench clean

help:
	@echo "make demo       install, compress vgg16 to 4 MB on the embedded digits, say where the report is"
	@echo "make install    install, and link the command into /usr/local/bin (root)"
	@echo "make test       install and run the tests (as root: system packages too)"
	@echo "make test-avx2  the tests of training as a processor without AVX-512 computes"
	@echo "make test-gpu   what has a branch for CUDA devices, where there is one"
	@echo "make test-slow  full-width networks and whole runs"
	@echo "make lint       ruff and mypy"
	@echo "make docs       generate the reference and the tables, build the site into site/"
	@echo "make bench      benchmarks/compress.py (long)"

# torch first and alone: with it in place, nothing else pulls another build of it; torchvision without its dependencies
# for the same reason (its compiled operators are not needed).
$(STAMP): pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install -q -c constraints.txt torch
	$(BIN)/pip install -q -c constraints.txt --no-deps torchvision
	$(BIN)/pip install -q -c constraints.txt -e '.[train,emulate,zoo,dev]'
	touch $(STAMP)

demo: $(STAMP)
	$(BIN)/edgecompress compress vgg16 --target 4MB --exist-ok -o runs/demo
	@echo "open $(CURDIR)/runs/demo/report.html"

# what the tests of reports and emulations need of Debian
SYSTEM := chromium mininet bridge-utils vde2 tcpdump iproute2 iputils-ping ethtool sudo
PROGRAMS := chromium mnexec brctl vde_switch tcpdump ip ping ethtool sudo

system:
	@missing=""; for program in $(PROGRAMS); do command -v $$program >/dev/null || missing=1; done; \
	if [ -n "$$missing" ] && [ "$$(id -u)" = 0 ] && command -v apt-get >/dev/null; then \
		apt-get update -q >/dev/null && DEBIAN_FRONTEND=noninteractive apt-get install -q -y --no-install-recommends $(SYSTEM) >/dev/null; \
	fi

# sudo's secure_path omits a virtual environment: afterwards `sudo edgecompress emulate ...` finds the command
LINK := /usr/local/bin/edgecompress
install: $(STAMP) system
	ln -sf $(CURDIR)/$(BIN)/edgecompress $(LINK)

# large pages, and memory that is kept, save a tenth of the time
ALLOCATOR := GLIBC_TUNABLES=glibc.malloc.hugetlb=1:glibc.malloc.mmap_threshold=2000000000:glibc.malloc.trim_threshold=2000000000

# three workers: one of them mostly waits, in emulations
test: $(STAMP) system
	@if [ "$$(id -u)" = 0 ] && [ ! -e $(LINK) ]; then ln -sf $(CURDIR)/$(BIN)/edgecompress $(LINK); fi
	$(ALLOCATOR) OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 3 --dist loadgroup -m "not slow" $(PYTEST_ARGS)

# trainings once more, as a processor without AVX-512 computes them
test-avx2: $(STAMP)
	OMP_NUM_THREADS=1 ONEDNN_MAX_CPU_ISA=AVX2 $(BIN)/python -m pytest -n 2 --dist loadgroup -m "not slow" \
		tests/train tests/methods/test_qat.py tests/methods/test_gates.py tests/methods/test_distill.py \
		tests/methods/test_features.py tests/methods/test_repair.py tests/methods/test_greedy.py $(PYTEST_ARGS)

# on a machine with a CUDA device: what has a branch for it, and the verbs, which choose it by themselves
test-gpu: $(STAMP)
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n auto --dist loadgroup -m "not slow" \
		tests/test_gpu.py tests/cli tests/stages tests/methods tests/train $(PYTEST_ARGS)

test-slow: $(STAMP) system
	$(BIN)/python -m pytest -m slow $(PYTEST_ARGS)

lint: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: $(STAMP)
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

docs: $(STAMP)
	$(BIN)/python -m docs.generate
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict -q

bench: $(STAMP)
	$(BIN)/python benchmarks/compress.py

clean:
	rm -rf $(VENV) runs site .pytest_cache .hypothesis .mypy_cache .ruff_cache
