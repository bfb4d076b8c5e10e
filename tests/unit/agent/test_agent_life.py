"""The table of an attempt's life, and the requests as bytes."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ovs_agent.life import PHASE_OF, STATE_OF, Request, State, parse, step
from policies.wire import Phase

ORDER = list(Phase)


def test_the_ordinary_life() -> None:
    assert step(None, Request.BEGIN, False).refuse is None
    assert step(State.STAGE_IN, Request.ENTER_PLUGIN, False) == step(State.RUN, Request.ENTER_JOB, False)
    assert step(State.STAGE_IN, Request.ENTER_JOB, False).advance is Phase.RUN
    assert step(State.RUN, Request.EXITED, False).refuse is None
    assert step(State.RUN, Request.STAGE_OUT, True).refuse is None
    assert step(State.STAGE_OUT, Request.ENTER_PLUGIN, True).refuse is None


@pytest.mark.parametrize(
    ("state", "request_", "exited"),
    [
        *((state, Request.BEGIN, False) for state in State),
        *((None, request, True) for request in Request if request is not Request.BEGIN),
        *((s, r, True) for s in (State.REGISTERING, State.CLOSING) for r in Request),
        *((State.FAILED, r, True) for r in Request if r is not Request.STAGE_OUT),
        (State.STAGE_IN, Request.STAGE_OUT, False),
        (State.STAGE_IN, Request.EXITED, False),
        (State.RUN, Request.STAGE_OUT, False),
        (State.STAGE_OUT, Request.ENTER_JOB, True),
    ],
)
def test_refused(state: State | None, request_: Request, exited: bool) -> None:
    answer = step(state, request_, exited)
    assert answer.refuse
    assert answer.advance is None


@given(st.lists(st.tuples(st.sampled_from(list(Request)), st.booleans()), max_size=30))
def test_phases_only_advance_whatever_is_asked(asked: list[tuple[Request, bool]]) -> None:
    state: State | None = None
    seen: list[Phase] = []
    for request, exited in asked:
        answer = step(state, request, exited)
        if answer.refuse:
            continue
        if request is Request.BEGIN:
            state = State.STAGE_IN
        if answer.advance is not None:
            state = STATE_OF[answer.advance]
        assert state is not None
        seen.append(PHASE_OF[state])
    assert seen == sorted(seen, key=ORDER.index)


@given(st.binary(max_size=400))
def test_bytes_that_are_no_request_are_none(data: bytes) -> None:
    found = parse(data)
    assert found is None or data.rstrip(b"\n\0") == b"LARK1 " + found.encode()


@pytest.mark.parametrize("request_", list(Request))
def test_requests_are_understood(request_: Request) -> None:
    assert parse(f"LARK1 {request_}".encode()) is request_
