# One virtual environment, pinned by constraints.txt, for every target.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed
APART := science or bench or long
QUICK := not (slow or system or $(APART))
REST := (slow or system) and not ($(APART))

.PHONY: install system system-check demo test coverage test-all test-long check docs science bench bench-idle gpu gpu-quick clean

install: $(INSTALLED)

$(INSTALLED): pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev]'
	touch $@

# What the tests need besides Python: a real SLURM that tests/slurm starts on this machine, and the
# browser that tests/browser drives. Fails where they cannot be had; those tests then skip, or, with
# SCALELAB_REQUIRE_SYSTEM=1, fail.
SYSTEM_PACKAGES := slurm-wlm slurm-client munge slurmdbd mariadb-server chromium
APT := DEBIAN_FRONTEND=noninteractive apt-get -q -o Acquire::Retries=1 -o Acquire::http::Timeout=20 \
	-o DPkg::Lock::Timeout=300

system:
	@$(MAKE) --no-print-directory system-check 2>/dev/null || { \
		if [ "$$(id -u)" = 0 ] && command -v apt-get >/dev/null; then \
			$(APT) update && $(APT) install -y --no-install-recommends $(SYSTEM_PACKAGES); \
		else \
			echo "as root on Debian: apt-get install --no-install-recommends $(SYSTEM_PACKAGES)"; \
		fi && $(MAKE) --no-print-directory system-check; }

system-check:
	@$(PYTHON) tests/slurm/cluster.py
	@timeout 60 chromium --headless --no-sandbox --disable-gpu --dump-dom about:blank >/dev/null

# The main job on real text, as the README shows it; at most 6 minutes on 2 cores.
demo: $(INSTALLED)
	sh examples/demo.sh $(BIN)

# What matters while you change the code: 10 to 13 minutes on 2 cores. A core that runs out of tests
# takes some of the other's.
test: $(INSTALLED)
	$(BIN)/python -m pytest -n 2 --dist worksteal -m "$(QUICK)"

# The same tests with the coverage of each file, which takes about 1.6 times as long.
coverage: $(INSTALLED)
	$(BIN)/python -m pytest -n 2 --dist worksteal -m "$(QUICK)" --cov --cov-report=term

# All that a change must pass: the tests above, then the slow ones, real SLURM and real browser.
test-all: test
	$(BIN)/python -m pytest -m "$(REST)"

# Before a release: second fault suites, and 1,000 random examples of every property.
test-long: $(INSTALLED)
	$(BIN)/python -m pytest -m long
	$(BIN)/python -m pytest -m "hypothesis and not (slow or system or $(APART))" \
		--hypothesis-profile=thorough

# Format, lint, types, layers, documentation, then the quick tests.
check: $(INSTALLED)
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(MAKE) --no-print-directory docs
	$(MAKE) --no-print-directory test

# The documentation site, into site/; warnings are errors. Look at it: python -m http.server -d site
docs: $(INSTALLED)
	$(BIN)/python docs/generate.py --check
	NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build --strict --quiet

# Long simulations; tables go to results/.
science: $(INSTALLED)
	$(BIN)/python -m pytest -m science -s

# One table of speeds, each as a ratio to a yardstick of the same run, within 20 minutes on 2 cores.
# Fails where a ratio is more than 20 % above the committed one.
bench: $(INSTALLED)
	$(BIN)/python tests/benchmarks/speed_table.py

# Limits in seconds and comparisons with other programs; these need an idle machine.
bench-idle: $(INSTALLED)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev,bench]'
	$(BIN)/python -m pytest -m bench -s

# Check and measure the GPU path. Both need a CUDA device, torch, Triton and NumPy, install nothing and
# use no network. Figures go to results/published/gpu, which says how to read them. gpu-quick takes at
# most 9 minutes, gpu at most an hour.
gpu-quick:
	$(PYTHON) tests/gpu/quick.py

gpu:
	$(PYTHON) tests/gpu/quick.py --long

clean:
	rm -rf $(VENV) build site *.egg-info .mypy_cache .ruff_cache .coverage
