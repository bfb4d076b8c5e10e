"""A node that cannot serve says so, and why: attributes the policy would not see, a refused node, no configuration."""

from __future__ import annotations

import signal
from collections.abc import Iterator

import pytest

from mininet_tests.agent_rig import GRANT, LIBEXEC, Rig
from mininet_tests.site.namespaces import SiteError, wait_until


@pytest.fixture(scope="module")
def rig() -> Iterator[Rig]:
    made = Rig.build()
    yield made
    made.destroy()


def ping(rig: Rig) -> str:
    return str(rig.machine.run([f"{LIBEXEC}/lark-ping"]).out)


def status(rig: Rig) -> tuple[int, str]:
    done = rig.lark_agent("status", "--config", str(rig.home / "agent.yaml"))
    return done.code, done.out


def begin(rig: Rig) -> str:
    starter = rig.starter()
    try:
        return starter.begin().out
    finally:
        starter.kill()


def test_a_policy_that_reads_what_the_node_does_not_send_stops_the_node(rig: Rig) -> None:
    assert "HookStatusCode" not in begin(rig), "positive control"
    rig.behave(grant=GRANT | {"attributes": ["larkgroup", "larknetwork"]})  # the controller has another policy
    wait_until("the agent has noticed", lambda: "HasLarkNetwork = false" in ping(rig), 6)
    for said in (ping(rig), status(rig)[1], begin(rig)):
        assert "STARTD_JOB_ATTRS of this node lacks: larknetwork;" in said, said
    assert status(rig)[0] == 1
    rig.settle()
    puts = [r for r in rig.requests("PUT", "/attempts/") if "LarkGroup" in r["body"]]
    assert len(puts) == 1, "only the first job's attempt was registered"

    rig.stop_agent()  # one that starts with the grant it has kept knows it, too, with no controller there
    rig.stop_controller()
    with pytest.raises(SiteError, match="the pool is warm"):
        rig.start_agent()
    assert "lacks: larknetwork;" in ping(rig)
    rig.start_controller()

    rig.sent = ["LarkGroup", "LarkNetwork"]
    rig.write_slots()
    assert rig.agent is not None
    rig.agent.send(signal.SIGHUP)
    rig.wait_for_pool()
    assert status(rig)[0] == 0
    assert "HookStatusCode" not in begin(rig)
    rig.behave()
    rig.settle()


def test_a_node_that_the_controller_refuses_says_so(rig: Rig) -> None:
    rig.wait_for_pool()
    rig.behave(PUT=403)
    wait_until("the agent has noticed", lambda: "HasLarkNetwork = false" in ping(rig), 6)
    for said in (ping(rig), status(rig)[1]):
        assert "the controller refuses this node: starting (403 starting)" in said, said
    rig.behave()
    wait_until("the node serves again", lambda: "HasLarkNetwork = true" in ping(rig), 15)
    assert status(rig)[0] == 0


def test_without_the_configuration_of_htcondor_it_does_not_start(rig: Rig) -> None:
    rig.stop_agent()
    right = (rig.home / "agent.yaml").read_text()
    (rig.home / "agent.yaml").write_text(right.replace("config: /dev/null", "config: /etc/condor/is_not_there"))
    try:
        done = rig.lark_agent("run", "--config", str(rig.home / "agent.yaml"))
        assert done.code == 1
        assert "condor.config /etc/condor/is_not_there: No such file or directory" in done.text, done.text
    finally:
        (rig.home / "agent.yaml").write_text(right)
    rig.start_agent()
    assert status(rig)[0] == 0, "positive control"
