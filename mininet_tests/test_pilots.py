"""On a real pool: a pilot is one job. The startd it starts as an ordinary user has no agent, and does not say
it has one.

The pilot's configuration even has the line that advertises `HasLarkNetwork`, as a copy of the node's own would:
Lark's agent answers it, and says no, because the question comes from within a job's network. The control is the node's
own startd.
"""

from __future__ import annotations

from mininet_tests.site.campus import ALICE, LIBEXEC, Site
from mininet_tests.story import run_job, wait_for_file

PORT = 9720
CONFIG = f"""
RELEASE_DIR = @USR@
LOCAL_DIR = @LOCAL@
LOG = $(LOCAL_DIR)/log
SPOOL = $(LOCAL_DIR)/spool
EXECUTE = $(LOCAL_DIR)/execute
LOCK = $(LOCAL_DIR)/log
RUN = $(LOCAL_DIR)/log
BIN = $(RELEASE_DIR)/bin
SBIN = $(RELEASE_DIR)/sbin
LIB = $(RELEASE_DIR)/lib/condor
LIBEXEC = $(RELEASE_DIR)/libexec/condor
DAEMON_LIST = MASTER, COLLECTOR, STARTD
CONDOR_HOST = 127.0.0.1
COLLECTOR_HOST = 127.0.0.1:{PORT}
NETWORK_INTERFACE = 127.0.0.1
USE_SHARED_PORT = False
SEC_DEFAULT_AUTHENTICATION = NEVER
SEC_DEFAULT_ENCRYPTION = NEVER
SEC_DEFAULT_INTEGRITY = NEVER
SEC_DEFAULT_NEGOTIATION = NEVER
ALLOW_READ = *
ALLOW_WRITE = *
ALLOW_DAEMON = *
ALLOW_ADMINISTRATOR = *
ENABLE_KERNEL_TUNING = False
BASE_CGROUP =
PREEN =
JAVA =
BENCHMARKS_PERIOD = 0
RunBenchmarks = False
START = True
STARTD_CRON_JOBLIST = LARK
STARTD_CRON_LARK_EXECUTABLE = {LIBEXEC}/lark-ping
STARTD_CRON_LARK_MODE = Periodic
STARTD_CRON_LARK_PERIOD = 2s
"""
PILOT = """#!/bin/sh
PATH=@USR@/bin:@USR@/sbin:$PATH
mkdir local local/log local/spool local/execute
sed -i "s|@LOCAL@|$PWD/local|" pilot.config
export CONDOR_CONFIG=$PWD/pilot.config
condor_master -f >/dev/null 2>&1 &
master=$!
for second in $(seq 40); do
    sleep 1
    condor_status -constraint 'HasLarkNetwork =!= undefined' -af:h Name HasLarkNetwork LarkNetworkReason > said 2>&1
    grep -q slot said && break
done
kill -QUIT $master
wait $master
cat said local/log/StartLog > @HERE@/live
: > @HERE@/done
"""


def test_the_startd_of_a_pilot_advertises_no_network_of_lark(site: Site) -> None:
    usr = str(site.prefix / "usr")
    files = {"pilot.config": CONFIG.replace("@USR@", usr)}
    job = run_job(site, ALICE, PILOT.replace("@USR@", usr), files, {"request_memory": "256"}, name="pilot")
    said = wait_for_file(job, timeout=90)
    job.finish()
    told = [line for line in said.splitlines() if line.startswith("slot")]
    assert told, said[-2000:]
    assert all(" false " in line and "(a pilot) has no agent" in line for line in told), told
    node = site.pool.command("condor_status", "-constraint", "HasLarkNetwork =?= true", "-af", "Name").out
    assert site.worker.name in node, "control: the node's own startd advertises it"
