# Targets: demo, test, lint, bench, clean. Everything is installed into .venv, which is made when absent.
#
#   make demo PYTHON=python3.12             another interpreter for .venv
#   make test PYTEST_ARGS="-k probe -x"     part of the tests
#   make test JOBS=1                        one test at a time

PYTHON ?= python3
PYTEST_ARGS ?=
# processes that share the tests; each takes up to 2 GB
JOBS ?= $(shell n=$$(getconf _NPROCESSORS_ONLN 2>/dev/null || echo 1); [ $$n -gt 4 ] && n=4; echo $$n)
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check
DEMO := --config imdb_probe --config tiny

.PHONY: demo test lint bench clean
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

clean:
	rm -rf $(VENV) build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache
	find benchmarks callbacks smolbench tests -name __pycache__ -type d -prune -exec rm -rf {} +

# The stamps are older than pyproject.toml when the dependencies may have changed.
$(VENV)/.installed: pyproject.toml setup.py | $(VENV)/.created
	@echo "== Installing smolbench into $(VENV); the first time this takes minutes ..."
	@$(PIP) install --quiet --editable .
	@touch $@

$(VENV)/.installed-dev: pyproject.toml setup.py | $(VENV)/.created
	@echo "== Installing smolbench and its test tools into $(VENV); the first time this takes minutes ..."
	@$(PIP) install --quiet --editable ".[dev]"
	@touch $(VENV)/.installed $@

$(VENV)/.installed-bench: pyproject.toml setup.py | $(VENV)/.created
	@echo "== Installing smolbench and what it is compared with into $(VENV) ..."
	@$(PIP) install --quiet --editable ".[bench]"
	@touch $(VENV)/.installed $@

$(VENV)/.created:
	@command -v $(PYTHON) > /dev/null || { \
	  echo "There is no $(PYTHON): name a Python 3.11 or later, as in: make $(MAKECMDGOALS) PYTHON=python3.12" >&2; exit 2; }
	@$(PYTHON) -c "import sys; sys.exit(sys.version_info < (3, 11))" || { \
	  echo "smolbench needs Python 3.11 or later, and $(PYTHON) is none: name another one, as in: make $(MAKECMDGOALS) PYTHON=python3.12" >&2; exit 2; }
	@echo "== Making $(VENV) with `$(PYTHON) -V`"
	@$(PYTHON) -m venv --clear $(VENV)
	@touch $@
