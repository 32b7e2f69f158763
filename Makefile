# make: set up and run the pipeline. make test: set up and run all tests. make check: lint and types.
# make study SPEECH=folder NOISE=folder [SYNTHETIC=folder] [RUNS="options of research.study.run"] [PROCESSES=1]: what
# docs/distillation.md compares, on your own speech and noise, and more speech of research.pretrain.synthesise; takes a GPU,
# leaves params.yaml at the preset study.
.DEFAULT_GOAL := repro
PYTHON ?= python3
BIN := .venv/bin
export PATH := $(CURDIR)/$(BIN):$(PATH)

PROCESSES ?= 1
SEEDS := --seed 0 --seed 1 --seed 2
RUNS ?= --steps 350 --finalist-steps 1000

.PHONY: setup repro test check study clean

setup: .venv/.installed

.venv/.installed: pyproject.toml constraints.txt
	@echo "setting up .venv: some five minutes"
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --disable-pip-version-check -c constraints.txt -e '.[mini,plots,dev]'
	$(BIN)/python -m dqlora.report.plots_page .venv/plots.html
	$(BIN)/dvc config --local plots.html_template "$(CURDIR)/.venv/plots.html"
	touch $@

repro: setup
	$(BIN)/dvc repro

test: setup
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n logical --dist loadfile --no-loadscope-reorder

check: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

study: setup
	$(if $(and $(SPEECH),$(NOISE)),,$(error make study needs SPEECH=folder, with train/, validation/, test/ and a \
		metadata.csv in each, and NOISE=folder, with train/ and test/))
	$(BIN)/python -m research.study.sources $(SPEECH) $(NOISE) $(if $(SYNTHETIC),--synthetic $(SYNTHETIC))
	$(BIN)/dvc exp run -S preset=study -S mix.copies=$(if $(SYNTHETIC),3,8) fetch_models
	$(BIN)/dvc repro --force --single-item fetch_speech  # DVC does not watch presets/study
	$(BIN)/dvc repro --force --single-item fetch_noise
	$(BIN)/dvc repro extract_features train_teacher_head
	$(BIN)/python -m research.study.run $(RUNS) $(SEEDS) --processes $(PROCESSES)
	$(BIN)/python -m research.study.table

clean:
	rm -rf data models metrics/*/test metrics/*/costs.json metrics/*/report.html
