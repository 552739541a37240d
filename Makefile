PYTHON ?= python3
BIN := .venv/bin
export MLFLOW_DISABLE_TELEMETRY := true
export DAGSTER_HOME ?= $(CURDIR)

.PHONY: setup demo test check ui clean bench-core bench-maintenance bench-imaging
.PHONY: bench-fraud bench-fraud-speed bench-fraud-stream bench-fraud-faults bench-fraud-sharing

setup: .venv/ready ## build .venv from requirements.lock

.venv/ready: requirements.lock pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Vigil needs Python 3.11 or newer: make PYTHON=...")'
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --upgrade pip
	$(BIN)/pip install --quiet --requirement requirements.lock
	$(BIN)/pip install --quiet --no-deps --no-build-isolation --editable .
	touch .venv/ready

demo: setup ## train, gate, register, then stream several days of payments through Kafka
	$(BIN)/vigil demo

test: setup
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2

check: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

ui: setup ## Dagster on port 3000, MLflow on port 5000
	$(BIN)/vigil ui

bench-fraud: setup ## every figure of the fraud solution; QUICK=--quick for one seed
	$(BIN)/python -m benchmarks.fraud $(QUICK)

bench-core: setup ## what the mixture of experts brings
	$(BIN)/python -m benchmarks.core_moe

bench-maintenance: setup ## C-MAPSS, Azure PdM, nitrogen generator, the simulated fleet, work-order text; some hours of one core
	for subset in FD001 FD002 azure; do OMP_NUM_THREADS=1 $(BIN)/python -m benchmarks.maintenance_quality $$subset || exit; done
	for what in "fleet 3" "fleet azure 5" "fleet scoring" "update regime" "update mode 3" polimi experts text; do OMP_NUM_THREADS=1 $(BIN)/python -m benchmarks.maintenance_$$what || exit; done

bench-fraud-speed: setup ## replay, latency at 10 k and 1 M nodes, soak (VIGIL_SOAK_SECONDS=600)
	$(BIN)/python -m benchmarks.fraud_speed
	OMP_NUM_THREADS=1 $(BIN)/python -m benchmarks.fraud_profile

bench-fraud-stream: setup ## Kafka to Kafka latency and rate; needs Apache Kafka (see CONTRIBUTING.md)
	OMP_NUM_THREADS=1 $(BIN)/python -m benchmarks.fraud_stream

bench-fraud-faults: setup ## 200 kills; needs Apache Kafka
	OMP_NUM_THREADS=1 $(BIN)/python -m benchmarks.fraud_faults

bench-fraud-sharing: setup ## workers that share partitions; needs Apache Kafka
	OMP_NUM_THREADS=1 $(BIN)/python -m benchmarks.fraud_sharing

bench-imaging: setup ## what the shipped imaging models are worth on held-out patients, faults and exports; an hour of one core
	for name in quality context exports active backbone; do OMP_NUM_THREADS=1 $(BIN)/python -m benchmarks.imaging_$$name || exit; done

clean:
	rm -rf .venv var build *.egg-info .mypy_cache .ruff_cache .hypothesis
