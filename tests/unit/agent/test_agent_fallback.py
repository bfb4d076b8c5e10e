"""Whether a namespace that a job brought may become its attempt's: judged from plain facts, one wrong at a time."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from ovs_agent import trust
from ovs_agent.fallback import Facts, Mode, judge, mode_of, trouble
from ovs_agent.life import Request, State, step
from policies.wire import Phase

HOST, STARTER, OTHER, MINE, AGENT_USER, OWN_USER, PID, UID = 1, 2, 3, 4, 10, 11, 500, 21001
BY_USERNS = Facts(MINE, OWN_USER, UID, AGENT_USER, OWN_USER, (PID,), ())
BY_STARTER = Facts(MINE, AGENT_USER, 0, 0, AGENT_USER, (PID,), ())
GOOD = {Mode.USERNS: BY_USERNS, Mode.STARTER: BY_STARTER}


def look(facts: Facts, mode: Mode) -> None:
    here, named = frozenset({HOST, STARTER}), {OTHER: "lark-wn1-7-attached"}
    judge(facts, mode=mode, pid=PID, uid=UID, here=here, named=named, agent_user=AGENT_USER)


@pytest.mark.parametrize("mode", GOOD)
def test_what_the_mode_says_is_accepted(mode: Mode) -> None:
    look(GOOD[mode], mode)


@pytest.mark.parametrize("mode", GOOD)
@pytest.mark.parametrize(
    ("wrong", "why"),
    [
        ({"network": HOST}, "host's own network"),
        ({"network": STARTER}, "host's own network"),
        ({"network": OTHER}, "lark-wn1-7-attached, which is not its own"),
        ({"inside": (PID, 501)}, "not alone in its network: 501"),
        ({"inside": (501,)}, "not alone"),
        ({"inside": ()}, "nor in it"),
        ({"devices_up": ("eth0",)}, "not empty: eth0"),
    ],
)
def test_one_thing_wrong(mode: Mode, wrong: dict[str, object], why: str) -> None:
    with pytest.raises(trust.Refused, match=why):
        look(replace(GOOD[mode], **wrong), mode)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("mode", "wrong", "why"),
    [
        (Mode.STARTER, {"owner": OWN_USER}, "belongs to a user namespace"),
        (Mode.STARTER, {"user": OWN_USER}, "belongs to a user namespace"),
        (Mode.USERNS, {"owner": AGENT_USER}, "does not belong to the user namespace"),
        (Mode.USERNS, {"user": AGENT_USER}, "does not belong to the user namespace"),
        (Mode.USERNS, {"owner": AGENT_USER, "user": AGENT_USER}, "does not belong to the user namespace"),
        (Mode.USERNS, {"owner_uid": UID + 1}, "not one that its own uid made"),
        (Mode.USERNS, {"owner_uid": 0}, "not one that its own uid made"),
        (Mode.USERNS, {"owner_parent": 12}, "not one that its own uid made"),
    ],
)
def test_the_wrong_owner(mode: Mode, wrong: dict[str, int], why: str) -> None:
    with pytest.raises(trust.Refused, match=why):
        look(replace(GOOD[mode], **wrong), mode)  # type: ignore[arg-type]


def test_neither_way_is_the_others() -> None:
    for facts, mode in ((BY_USERNS, Mode.STARTER), (BY_STARTER, Mode.USERNS)):
        with pytest.raises(trust.Refused):
            look(facts, mode)
    for facts in GOOD.values():
        with pytest.raises(trust.Refused, match="does not attach"):
            look(facts, Mode.CAPABILITY)


def test_user_namespaces_need_the_administrators_declaration() -> None:
    assert "fallback.siblings-hidden" in trouble(Mode.USERNS, siblings_hidden=False)
    assert not trouble(Mode.USERNS, siblings_hidden=True)
    for mode in (Mode.CAPABILITY, Mode.STARTER):
        assert not trouble(mode, siblings_hidden=False)


def test_the_administrators_word(tmp_path: Path) -> None:
    """Needs root: only root's word counts."""
    assert mode_of(tmp_path) is Mode.CAPABILITY, "no file"
    word = tmp_path / "lark-attach"
    for mode in Mode:
        word.write_text(f"{mode}\n")
        word.chmod(0o644)
        assert mode_of(tmp_path) is mode
    word.chmod(0o664)
    with pytest.raises(trust.Refused, match="writable by nobody else"):
        mode_of(tmp_path)
    word.chmod(0o644)
    for text in ("", "Userns", "userns starter", "capability, userns"):
        word.write_text(text)
        with pytest.raises(trust.Refused):
            mode_of(tmp_path)
    word.unlink()
    word.symlink_to("/dev/null")
    with pytest.raises(trust.Refused, match="cannot be read"):
        mode_of(tmp_path)


def test_attaching_is_heard_once() -> None:
    assert step(State.STAGE_IN, Request.ATTACH_JOB, job_exited=False).advance is Phase.RUN
    again = step(State.RUN, Request.ATTACH_JOB, job_exited=False)
    assert again.refuse is not None
    assert "condor_ssh_to_job" in again.refuse
    assert again.advance is None
    assert step(State.STAGE_OUT, Request.ATTACH_JOB, job_exited=True).refuse
