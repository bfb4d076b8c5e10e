"""Scitags in bits: the IPv6 flow label of an experiment and an activity, and the number that files and commands use.

The flow label (draft-cc-v6ops-wlcg-flow-label-marking), the first bit the most significant:

    bits   1-2   3 to 11                                    12    13 to 18   19-20
    what   any   experiment, its least significant first    any   activity   any

The *protocol value* (`scitag.flow` of XRootD and HTTP) is something else, `experiment << 6 | activity`, and is never a
flow label: both numbers look alike, and mean different things.

Invariants: pure; a label that was made is read back as what it was made of, whatever the five free bits are.
"""

from __future__ import annotations

EXPERIMENT_BITS, ACTIVITY_BITS = 9, 6
MAX_EXPERIMENT, MAX_ACTIVITY = (1 << EXPERIMENT_BITS) - 1, (1 << ACTIVITY_BITS) - 1
FREE_BITS = 0b11_000000000_1_000000_11
"""Bits of a label that say nothing: they spread flows over paths."""
EXPERIMENT_AT, ACTIVITY_AT = 9, 2
"""Where in a label the two begin, counted from its least significant bit."""


def in_label(experiment: int) -> int:
    """The bits of an experiment as a label has them; the same once more gives the experiment."""
    return int(f"{experiment:0{EXPERIMENT_BITS}b}"[::-1], 2)


def _check(experiment: int, activity: int) -> None:
    if not (0 <= experiment <= MAX_EXPERIMENT and 0 <= activity <= MAX_ACTIVITY):
        raise ValueError(f"no scitag: experiment {experiment} (to {MAX_EXPERIMENT}), activity {activity}")


def flow_label(experiment: int, activity: int, free: int = 0) -> int:
    """The 20 bits; `free`: any number, of which the free bits are taken."""
    _check(experiment, activity)
    return in_label(experiment) << EXPERIMENT_AT | activity << ACTIVITY_AT | free & FREE_BITS


def of_flow_label(label: int) -> tuple[int, int]:
    """Experiment and activity that a label says."""
    if not 0 <= label < 1 << 20:
        raise ValueError(f"{label} is no IPv6 flow label")
    return in_label(label >> EXPERIMENT_AT & MAX_EXPERIMENT), label >> ACTIVITY_AT & MAX_ACTIVITY


def protocol_value(experiment: int, activity: int) -> int:
    """What `scitag.flow=` takes. Never put it into a packet."""
    _check(experiment, activity)
    return experiment << ACTIVITY_BITS | activity


def of_protocol_value(value: int) -> tuple[int, int]:
    if not 0 <= value < 1 << EXPERIMENT_BITS + ACTIVITY_BITS:
        raise ValueError(f"{value} is no scitag.flow")
    return value >> ACTIVITY_BITS, value & MAX_ACTIVITY
