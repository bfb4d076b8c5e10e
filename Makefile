# Lark's commands. `make demo` and `make test` install all they need on a fresh Debian 12 machine, as root; see `make help`.
#
# Nothing of the checkout is installed into the environment: every command runs with the checkout on PYTHONPATH, so that
# two checkouts on one machine never run each other's code. The environment's name holds the hash of the lock files.

SHELL := /bin/sh
.DEFAULT_GOAL := help
.NOTPARALLEL:
MAKEFLAGS += --no-print-directory
.PHONY: help demo test test-full check bench lock install-deps install clean clean-cache python packages condor

ROOT := $(patsubst %/,%,$(dir $(abspath $(lastword $(MAKEFILE_LIST)))))
UID := $(shell id -u)
ifeq ($(UID),0)
LARK_CACHE ?= /var/cache/htlark
else
LARK_CACHE ?= $(HOME)/.cache/htlark
endif
export LARK_CACHE

PYTHON3 ?= /usr/bin/python3
ENGINE ?= os-ken
PREFIX ?= /opt/lark
ARGS ?=

BUILD_LOCK := requirements-build.lock
LOCKS := $(BUILD_LOCK) requirements.lock
VENV := $(LARK_CACHE)/venv-$(shell cat $(LOCKS:%=$(ROOT)/%) $(ROOT)/scripts/make-venv | sha256sum | cut -c1-12)
PYTHON := PYTHONPATH=$(ROOT) PATH=$(VENV)/bin:$$PATH $(VENV)/bin/python
PYTEST := $(PYTHON) -m pytest --quiet --no-skips
REPORTS := $(ROOT)/build/reports
# $(call system-tests,NAME): two at a time; a test that fails is run up to twice more, alone, and told as flaky if it passes then.
system-tests = PYTHONPATH=$(ROOT) PATH=$(VENV)/bin:$$PATH $(ROOT)/scripts/system-tests $(REPORTS) $(1) $(VENV)/bin/python -m pytest --quiet --no-skips

# What `make check` needs, and what the demo and the system tests need besides.
BASE_PACKAGES := ca-certificates python3 python3-venv python3-dev gcc libc6-dev
SITE_PACKAGES := openvswitch-switch nftables ethtool iproute2 iputils-ping iperf3 libcap2-bin xrootd-server xrootd-client \
                 util-linux procps tcpdump busybox-static mininet openssh-client librsvg2-bin systemd

help:
	@echo 'make demo          the main story on a real HTCondor pool, with evidence (root; installs what it needs; ENGINE=ryu for Ryu)'
	@echo 'make lab           lark-lab: a campus in Mininet and a prompt to try policies at (root; ARGS="reach --policy FILE" for another command)'
	@echo 'make test          all tests: check, system tests on os-ken, the main ones again on Ryu (root; installs what it needs)'
	@echo 'make test-full     the same with HTCondor 25 probes, every system test on both engines, long property tests'
	@echo 'make check         format, lint, types, import contracts, unit tests (no root needed, under a minute on two idle cores)'
	@echo 'make bench         measurements against peers (says what does not exist yet)'
	@echo 'make install       the daemons and commands into PREFIX ($(PREFIX)), in an environment of their own'
	@echo 'make install-deps  only install: Debian packages, Python environment, HTCondor in a prefix'
	@echo 'make lock          write the lock files anew from pyproject.toml and requirements-build.in'
	@echo 'make clean         remove what builds and tests left in this checkout; clean-cache: also $(LARK_CACHE)'
	@echo
	@echo 'ARGS="-k name" passes arguments to pytest (test) or to the demo; LARK_CACHE=DIR puts the caches elsewhere.'
	@echo 'LARK_TEST_WORKERS=NUMBER runs so many system tests at a time (2).'
	@echo 'LARK_SEED=NUMBER shows the judges of policies other worlds; python -m mininet_tests.replay FILE asks them about one.'

# --- what must be there first ---------------------------------------------------------------------------------------

.PHONY: need-root
need-root:
	@[ "$(UID)" -eq 0 ] || { echo 'make $(MAKECMDGOALS): needs root (network namespaces, Open vSwitch, job users). Try: sudo make $(MAKECMDGOALS)' >&2; exit 1; }

packages: need-root
	@$(ROOT)/scripts/install-packages $(BASE_PACKAGES) $(SITE_PACKAGES)

# Without root the base packages can only be looked for; install-packages says which are missing.
.PHONY: base-packages
base-packages:
	@[ ! -x /usr/bin/dpkg-query ] || $(ROOT)/scripts/install-packages $(BASE_PACKAGES)

python: base-packages
	@$(ROOT)/scripts/make-venv $(PYTHON3) $(VENV) $(LOCKS:%=$(ROOT)/%)

condor: packages python
	@$(PYTHON) -m condor_bridge.prefix install --version 23 --prefix $(LARK_CACHE)/condor-23

# For condor_ssh_to_job in the tests.
.PHONY: sshd
sshd: packages
	@$(ROOT)/scripts/fetch-sshd $(LARK_CACHE)/sshd

.PHONY: condor-25
condor-25: packages python
	@$(PYTHON) -m condor_bridge.prefix install --version 25 --prefix $(LARK_CACHE)/condor-25

.PHONY: apptainer
apptainer: packages python
	@$(PYTHON) -m mininet_tests.site.apptainer >/dev/null

install-deps: packages python condor condor-25 apptainer sshd
	@echo 'everything is there: $(LARK_CACHE)'

# --- what people run ------------------------------------------------------------------------------------------------

demo: need-root packages python condor
	@$(PYTHON) -m mininet_tests.demo --engine $(ENGINE) $(ARGS)

.PHONY: lab
lab: need-root packages python
	@$(PYTHON) -m mininet_tests.topology.cli $(or $(strip $(ARGS)),campus)

check: python
	@cd $(ROOT) && \
	run() { echo "==> $$*"; PYTHONPATH=$(ROOT) "$$@"; } && \
	run $(VENV)/bin/ruff format --check --quiet . && \
	run $(VENV)/bin/ruff check --quiet . && \
	run $(VENV)/bin/mypy --no-error-summary && \
	run $(VENV)/bin/lint-imports --no-logo && \
	echo '==> unit tests' && \
	$(PYTEST) -n auto --maxprocesses 8 --dist worksteal tests

test: need-root packages python condor condor-25 apptainer sshd
	@echo '==> property tests in full; meaning of policies and compiled flows, 10,000 random pairs of world and packet (seed '$${LARK_SEED:-2015}')'
	@LARK_TEST_MORE=1 LARK_JUDGED_PAIRS=10000 $(MAKE) check
	@mkdir -p $(REPORTS)
	@echo '==> system tests, engine os-ken'
	@cd $(ROOT) && LARK_TEST_ENGINE=os-ken $(call system-tests,os-ken) --durations=5 mininet_tests $(ARGS)
	@echo '==> main system tests, engine ryu'
	@cd $(ROOT) && LARK_TEST_ENGINE=ryu $(call system-tests,ryu) --durations=5 -m engine mininet_tests $(ARGS) \
	    $(if $(strip $(ARGS)),|| [ $$? -eq 5 ])

test-full: need-root packages python condor condor-25 apptainer sshd
	@LARK_TEST_FULL=1 $(MAKE) check
	@mkdir -p $(REPORTS)
	@for engine in os-ken ryu; do \
	    echo "==> all system tests, engine $$engine"; \
	    (cd $(ROOT) && LARK_TEST_FULL=1 LARK_TEST_ENGINE=$$engine $(call system-tests,full-$$engine) mininet_tests $(ARGS)) || exit 1; \
	done

bench: need-root packages python condor
	@mkdir -p $(REPORTS)
	@cd $(ROOT) && $(PYTHON) -m mininet_tests.bench.resync --engine $(ENGINE) --json $(REPORTS)/bench-resync.json
	@cd $(ROOT) && $(PYTHON) -m mininet_tests.bench.decide --json $(REPORTS)/bench-decide.json
	@cd $(ROOT) && $(PYTHON) -m mininet_tests.bench.front
	@cd $(ROOT) && $(PYTHON) -m mininet_tests.bench.pool --json $(REPORTS)/bench-pool.json
	@cd $(ROOT) && $(PYTHON) -m mininet_tests.bench.churn --engine $(ENGINE) --json $(REPORTS)/bench-churn.json
	@cd $(ROOT) && $(PYTHON) -m mininet_tests.bench.border --json $(REPORTS)/bench-border.json --html $(REPORTS)/bench-border.html --png $(REPORTS)/bench-border.png
	@echo 'Not measured yet:'
	@echo '  - registration to policy in force, against OVN, a shell hook, rest_firewall and the barrier round trip'
	@echo '  - job network set-up against the CNI bridge plugin'
	@echo '  - packets through the pipeline against actions=NORMAL; rates; accounting'

# --- a real installation --------------------------------------------------------------------------------------------

# An environment that holds only what runs in production, and the project itself, all by hash and without isolation.
install: base-packages
	@$(ROOT)/scripts/make-venv $(PYTHON3) $(PREFIX) $(ROOT)/$(BUILD_LOCK) $(ROOT)/requirements-run.lock
	@$(PREFIX)/bin/python -m pip --disable-pip-version-check install --quiet --no-build-isolation --no-deps --no-index --force-reinstall $(ROOT)
	@mkdir -p $(PREFIX)/lib/systemd $(PREFIX)/share/doc/lark
	@cp -R $(ROOT)/README.md $(ROOT)/docs $(PREFIX)/share/doc/lark/
	@mkdir -p $(PREFIX)/share/doc/lark/policies && cp -R $(ROOT)/policies/examples $(PREFIX)/share/doc/lark/policies/
	@for unit in lark-agent lark-controller lark-bridge@ lark-border; do \
	    sed 's#/opt/lark/#$(PREFIX)/#' $(ROOT)/systemd/$$unit.service >$(PREFIX)/lib/systemd/$$unit.service || exit 1; \
	done
	@echo 'installed into $(PREFIX)/bin: lark-controller larkctl lark-agent lark-lab; units to copy: $(PREFIX)/lib/systemd'
	@echo 'documents and examples: $(PREFIX)/share/doc/lark'

# --- upkeep ---------------------------------------------------------------------------------------------------------

COMPILE = CUSTOM_COMPILE_COMMAND='make lock' PATH=$(VENV)/bin:$$PATH $(VENV)/bin/pip-compile --quiet --generate-hashes --allow-unsafe \
          --strip-extras --no-emit-index-url --no-emit-find-links --no-emit-trusted-host --no-emit-options $(UPGRADE)

# UPGRADE=--upgrade takes newer versions; without it only what pyproject.toml changed moves. Ryu's metadata needs the
# locked build tools (--no-build-isolation).
lock: python
	cd $(ROOT) && $(COMPILE) -o $(BUILD_LOCK) requirements-build.in
	cd $(ROOT) && $(COMPILE) --no-build-isolation --all-extras -c $(BUILD_LOCK) -o requirements.lock pyproject.toml
	cd $(ROOT) && $(COMPILE) --no-build-isolation -c requirements.lock -o requirements-run.lock pyproject.toml
	@$(MAKE) python

clean:
	rm -rf $(ROOT)/build $(ROOT)/dist $(ROOT)/artifacts
	find $(ROOT) -name .git -prune -o -type d \( -name __pycache__ -o -name .pytest_cache -o -name .mypy_cache \
	    -o -name .ruff_cache -o -name .hypothesis -o -name .import_linter_cache \) -prune -exec rm -rf {} +

clean-cache: clean
	rm -rf $(LARK_CACHE)/venv-* $(LARK_CACHE)/condor-* $(LARK_CACHE)/apptainer $(LARK_CACHE)/sshd
