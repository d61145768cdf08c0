# Two commands: `make run` shows the main job, `make test` runs every test. Both install what they need.
# Everything else: make check | validate | bench | demo-checkpoint | clean.

PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
export PIP_DISABLE_PIP_VERSION_CHECK = 1
export HF_HUB_OFFLINE = 1

# What the installed packages follow from; a changed file makes a new stamp, and a new installation.
STAMP      = $(VENV)/.installed-$(shell cat setup.cfg pyproject.toml constraints.txt | sha256sum | cut -c1-12)
STAMP_DEV  = $(STAMP)-dev
SYSTEM_RUN  := python3-venv
SYSTEM_JUDGES := dcmtk pixelmed-apps
SYSTEM_TEST := $(SYSTEM_RUN) $(SYSTEM_JUDGES) orthanc orthanc-dicomweb orthanc-python orthanc-webviewer chromium
# Some bring npm with Node.js, where Debian's package of that name cannot be installed.
SYSTEM_TEST += $(if $(shell command -v npm 2>/dev/null),,npm)
# The viewer that the tests look through, as its makers built it.
OHIF        := 3.13.2
OHIF_SHA256 := b189d3963bfc58e9394a9db8c7be75d07beb029ec211dbb126d47b62969dd3f1

.PHONY: run test check validate bench demo-checkpoint clean system-run system-validate system-test

run: system-run $(STAMP)
	$(BIN)/lamed-node demo

test: system-test $(STAMP_DEV) $(VENV)/ohif-$(OHIF)
	$(BIN)/python -m pytest -n 2 --dist loadfile $(ARGS)

check: system-run $(STAMP_DEV)
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	MYPYPATH=plugin $(BIN)/mypy --strict plugin/lamed_orthanc.py
	$(BIN)/lint-imports

# Every object x modality x profile before every validator and reader: about ten minutes on 2 cores.
validate: system-validate $(STAMP_DEV)
	$(BIN)/python -m tests.validation $(ARGS)

bench: system-test $(STAMP_DEV)
	$(BIN)/python -m tests.bench $(ARGS)

# Trains model/demo anew, and measures it: hours on 2 cores. What was killed goes on from run/demo.
demo-checkpoint: system-run $(STAMP_DEV)
	$(BIN)/lamed-model train demo --out run/demo --cache run/pool
	$(BIN)/lamed-model bench --checkpoint run/demo/half --clip run/demo/contrastive/checkpoint \
	  --scans run/pool/source 60 --out run/demo/bench
	$(BIN)/lamed-model train ship --source run/demo/half --results run/demo/bench/results.json --run run/demo \
	  --out model/demo

clean:
	rm -rf $(VENV) build *.egg-info .pytest_cache .mypy_cache .ruff_cache .import_linter_cache .hypothesis

system-run: PACKAGES = $(SYSTEM_RUN)
system-validate: PACKAGES = $(SYSTEM_RUN) $(SYSTEM_JUDGES)
system-test: PACKAGES = $(SYSTEM_TEST)
system-run system-validate system-test:
	@missing=""; for each in $(PACKAGES); do \
	  dpkg-query -W -f '$${Status}' $$each 2>/dev/null | grep -q 'ok installed' || missing="$$missing $$each"; done; \
	if [ -n "$$missing" ]; then \
	  echo "installing system packages:$$missing"; \
	  sudo=""; [ "$$(id -u)" = 0 ] || sudo=sudo; \
	  $$sudo apt-get update -qq && \
	  DEBIAN_FRONTEND=noninteractive $$sudo apt-get install -y -qq --no-install-recommends $$missing >/dev/null; \
	fi

$(VENV)/bin/python:
	@echo "making a virtual environment in $(VENV)"
	$(PYTHON) -m venv $(VENV)

$(STAMP): | $(VENV)/bin/python
	@echo "installing LaMed Node and what it needs into $(VENV) (a few minutes the first time)"
	$(BIN)/pip install --quiet --progress-bar on $$(grep '^torch==' constraints.txt)
	$(BIN)/pip install --quiet --progress-bar on --constraint constraints.txt --editable .
	@touch $@

$(STAMP_DEV): $(STAMP)
	@echo "installing what the tests need into $(VENV)"
	$(BIN)/pip install --quiet --progress-bar on --constraint constraints.txt --editable '.[dev,qa]'
	@touch $@

$(VENV)/ohif-$(OHIF): | system-test $(VENV)/bin/python
	@echo "fetching the viewer OHIF $(OHIF) into $(VENV)"
	@rm -rf $@.part && mkdir $@.part
	@npm pack --silent --pack-destination $@.part @ohif/app@$(OHIF) >/dev/null
	@echo "$(OHIF_SHA256)  $@.part/ohif-app-$(OHIF).tgz" | sha256sum --check --quiet
	@tar -xzf $@.part/ohif-app-$(OHIF).tgz -C $@.part --strip-components 2 --exclude '*.map' package/dist
	@rm $@.part/ohif-app-$(OHIF).tgz
	@mv $@.part $@
