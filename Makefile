# Targets: demo, test, lint, bench, docs, dist, clean. Everything is installed into .venv, which is made when absent,
# in the versions of .ci/constraints.txt, with which smolbench was tried.
#
#   make demo PYTHON=python3.12             another interpreter for .venv
#   make test PYTEST_ARGS="-k probe -x"     part of the tests
#   make test JOBS=1                        one test at a time
#   make test-newest                        the tests, with the newest versions pyproject.toml allows
#   make test-oldest                        the tests, with the oldest; on Linux gigabytes of CUDA
#   make properties                         random tables through every command, many and always new
#   make mutants                            mutation tests of what numbers come from (tests/mutants)
#   make docs                               the site, in build/docs; strict
#   make dist                               wheel and sdist, checked, in dist
#   make lock                               renew .ci/constraints.txt

PYTHON ?= python3
PYTEST_ARGS ?=
MUTANTS_ARGS ?=
# how many times the usual cases of `make properties`, such as 0.1 or 10
CASES ?= 1
# processes that share the tests; each takes up to 2 GB
JOBS ?= $(shell n=$$(getconf _NPROCESSORS_ONLN 2>/dev/null || echo 1); [ $$n -gt 4 ] && n=4; echo $$n)
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check
# the versions to install, in a file of constraints; the newest if it is empty
LOCK := .ci/constraints.txt
# eager: what the dependencies depend on as well
INSTALL := $(PIP) install --quiet $(if $(LOCK),--constraint $(LOCK),--upgrade --upgrade-strategy eager)
DEMO := --config imdb_probe --config tiny

.PHONY: demo test test-zoo test-newest test-oldest properties mutants lint bench docs docs-links dist lock clean
.DEFAULT_GOAL := test

demo: $(VENV)/.installed
	@echo "== Train: a head on the frozen, built-in tiny model, on built-in sample reviews"
	$(BIN)/smolbench fit $(DEMO)
	@echo
	@echo "== The run is in runs/imdb_probe+tiny/, in the folder named by its start time:"
	@echo "   config.yaml       every setting          checkpoints/  best.ckpt and last.ckpt"
	@echo "   metrics.csv       the course of it       results.json  quality and cost"
	@echo "   environment.json  machine and versions"
	@echo
	@echo "== Test: score the best checkpoint of the newest run; adds predictions.parquet"
	$(BIN)/smolbench test
	@echo
	@echo "== Next: \`$(BIN)/smolbench recipes\` lists what can be run, README.md explains it."

test: $(VENV)/.installed-dev
	@$(BIN)/python -m pytest -n $(JOBS) --dist worksteal $(PYTEST_ARGS)

# what is newest changes without any file here
# all architectures go all ways; `make test` takes each at least one
test-zoo: $(VENV)/.installed-dev
	@SMOLBENCH_ZOO=whole $(BIN)/python -m pytest -n $(JOBS) --dist worksteal tests/zoo $(PYTEST_ARGS)

test-newest:
	@rm -f .venv-newest/.installed-dev
	@$(MAKE) --no-print-directory test VENV=.venv-newest LOCK=

test-oldest:
	@$(MAKE) --no-print-directory test VENV=.venv-oldest LOCK=.venv-oldest/oldest.txt

# an hour on two cores; `make test` tries a few of the cases, always the same
properties: $(VENV)/.installed-dev
	@SMOLBENCH_PROPERTIES=$(CASES) $(BIN)/python -m pytest -n $(JOBS) --dist worksteal --timeout 7200 \
	  tests/properties $(PYTEST_ARGS)

# over an hour on two cores
mutants: $(VENV)/.installed-dev
	@$(BIN)/python -m tests.mutants --jobs $(JOBS) $(MUTANTS_ARGS)

lint: $(VENV)/.installed-dev
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy

bench: $(VENV)/.installed-bench
	$(BIN)/python benchmarks/startup.py
	$(BIN)/python benchmarks/memory_curve.py
	$(BIN)/python benchmarks/probe_vs_trainer.py
	$(BIN)/python benchmarks/hellaswag_vs_lm_eval.py
	$(BIN)/python benchmarks/choice_training.py
	$(BIN)/python benchmarks/prompting.py
	$(BIN)/python benchmarks/fine_tune_vs_trainer.py
	$(BIN)/python benchmarks/peft_memory.py
	$(BIN)/python benchmarks/footprint_vs_measured.py
	$(BIN)/python benchmarks/distillation.py
	$(BIN)/python benchmarks/summarization.py

docs: $(VENV)/.installed-docs
	$(BIN)/sphinx-build -q -W --keep-going -b html docs build/docs
	@echo "== build/docs/index.html"

# what the site points to elsewhere is there; needs the internet
docs-links: $(VENV)/.installed-docs
	$(BIN)/sphinx-build -q -W --keep-going -b linkcheck docs build/links

# the wheel is built from the sdist, so that both hold all files
dist: .venv-dist/.created
	@.venv-dist/bin/python -m pip --disable-pip-version-check install --quiet "build>=1.3,<2" "twine>=6.2,<7"
	@rm -rf dist
	.venv-dist/bin/python -m build
	.venv-dist/bin/twine check --strict dist/*

# One version of each package for all systems and interpreters; uv, because pip resolves for the
# machine that it runs on only. What only other systems than Linux and macOS need is left out.
lock: .venv-lock/.created
	@.venv-lock/bin/python -m pip --disable-pip-version-check install --quiet --upgrade "uv>=0.8,<1"
	@.venv-lock/bin/uv pip compile --quiet --upgrade --universal --python-version 3.11 \
	  --fork-strategy fewest --all-extras --no-annotate --custom-compile-command "make lock" \
	  pyproject.toml | grep -Ev "^#  *$$|; .*sys_platform == '(emscripten|win32)'" > .venv-lock/lock.txt
	@mv .venv-lock/lock.txt .ci/constraints.txt

clean:
	rm -rf $(VENV) .venv-newest .venv-oldest .venv-lock .venv-dist build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache
	find benchmarks callbacks smolbench tests -name __pycache__ -type d -prune -exec rm -rf {} +

# The stamps are older than pyproject.toml or the lock when the dependencies may have changed.
$(VENV)/.installed: pyproject.toml setup.py $(LOCK) | $(VENV)/.created
	@echo "== Installing smolbench into $(VENV); the first time this takes minutes ..."
	@$(INSTALL) --editable .
	@touch $@

$(VENV)/.installed-dev: pyproject.toml setup.py $(LOCK) | $(VENV)/.created
	@echo "== Installing smolbench and its test tools into $(VENV); the first time this takes minutes ..."
	@$(INSTALL) --editable ".[dev]"
	@touch $(VENV)/.installed $@

$(VENV)/.installed-bench: pyproject.toml setup.py $(LOCK) | $(VENV)/.created
	@echo "== Installing smolbench and what it is compared with into $(VENV) ..."
	@$(INSTALL) --editable ".[bench]"
	@touch $(VENV)/.installed $@

$(VENV)/.installed-docs: pyproject.toml setup.py $(LOCK) | $(VENV)/.created
	@echo "== Installing smolbench and what builds its site into $(VENV) ..."
	@$(INSTALL) --editable ".[docs]"
	@touch $(VENV)/.installed $@

$(VENV)/oldest.txt: pyproject.toml .ci/oldest.py | $(VENV)/.created
	@$(BIN)/python .ci/oldest.py > $@

%/.created:
	@command -v $(PYTHON) > /dev/null || { \
	  echo "There is no $(PYTHON): name a Python 3.11 or later, as in: make $(MAKECMDGOALS) PYTHON=python3.12" >&2; exit 2; }
	@$(PYTHON) -c "import sys; sys.exit(sys.version_info < (3, 11))" || { \
	  echo "smolbench needs Python 3.11 or later, and $(PYTHON) is none: name another one, as in: make $(MAKECMDGOALS) PYTHON=python3.12" >&2; exit 2; }
	@echo "== Making $(@D) with `$(PYTHON) -V`"
	@$(PYTHON) -m venv --clear $(@D)
	@touch $@
