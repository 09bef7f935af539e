# One virtual environment, pinned by constraints.txt, for every target.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed
EVERYDAY := not science and not bench and not gpu and not system

.PHONY: install system system-test demo test check science bench gpu clean

install: $(INSTALLED)

$(INSTALLED): pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev]'
	touch $@

# What the tests need besides Python: a real SLURM that tests/slurm starts on this machine, and the
# browser that tests/browser drives.
SYSTEM_PACKAGES := slurm-wlm slurm-client munge slurmdbd mariadb-server chromium

system:
	@if [ "$$(id -u)" = 0 ] && command -v apt-get >/dev/null; then \
		apt-get -q update && \
		DEBIAN_FRONTEND=noninteractive apt-get -q -o DPkg::Lock::Timeout=300 install -y \
			--no-install-recommends $(SYSTEM_PACKAGES); \
	else \
		echo "as root on Debian: apt-get install --no-install-recommends $(SYSTEM_PACKAGES)"; \
	fi

# A real SLURM and a real browser: after `make system`.
system-test: $(INSTALLED)
	$(BIN)/python -m pytest -m "system and not bench"

# The main job on real text, as the README shows it; at most 6 minutes on 2 cores.
demo: $(INSTALLED)
	sh examples/demo.sh $(BIN)

test: $(INSTALLED)
	$(BIN)/python -m pytest -m "$(EVERYDAY)"

check: $(INSTALLED)
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/python -m pytest -m "$(EVERYDAY)" --cov --cov-report=term

# Long simulations; tables go to results/.
science: $(INSTALLED)
	$(BIN)/python -m pytest -m science -s

# Ratios against other programs, side by side in one run; wants a quiet machine.
bench: $(INSTALLED)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev,bench]'
	$(BIN)/python -m pytest -m bench -s

# Needs a CUDA device; fails without one. Figures go to results/published/gpu.
gpu: $(INSTALLED)
	@$(BIN)/python -c "import sys, torch; torch.cuda.is_available() or sys.exit('make gpu: torch \
	sees no CUDA device: nothing is measured and nothing is claimed')"
	TRITON_INTERPRET=0 $(BIN)/python -m pytest -m gpu -s

clean:
	rm -rf $(VENV) build *.egg-info .mypy_cache .ruff_cache .coverage
