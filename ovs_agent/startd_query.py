"""Child process of the agent that puts questions to the local startd: `python -m ovs_agent.startd_query`.

A process of its own because HTCondor's library holds Python's global lock while it waits for an answer (60 s for a
startd that hangs): in a thread it would stop the whole agent. One line of JSON in, one line of JSON out.

Invariants: only attributes that were asked for are passed on; only literals have a value, everything else is named
under `expressions` and is never evaluated. A job's owner writes most of what is read here: a value that the library
cannot convert, or that is too large, stands under `expressions` too, so that it holds that job and no other.
"""

from __future__ import annotations

import datetime
import json
import math
import sys
from pathlib import Path
from typing import Any

import classad2
import htcondor2

SLOT_ATTRIBUTES = ("Name", "Machine", "SlotType", "OpSys", "Arch", "Cpus", "Memory", "NetworkMbps", "HasLarkNetwork")
"""What a policy may read of the slot (TARGET)."""
META_ATTRIBUTES = ("Name", "JobId", "GlobalJobId", "JobStart", "State", "Activity")
MAX_VALUE = 16 * 1024
"""Bytes of JSON of one value; the controller takes no longer string."""
MAX_AD = 128 * 1024
MAX_ANSWER = 32 * 1024 * 1024
"""Bytes of JSON of one ad, and of all of them. The agent reads lines of twice the latter."""


def literal(value: object) -> tuple[bool, Any]:
    """(True, JSON value) of a literal; (False, None) of anything else."""
    # Exact types: UNDEFINED and ERROR are integers to Python (members of an IntEnum).
    if type(value) in (bool, int, str):
        if isinstance(value, str):
            value.encode()  # a lone surrogate cannot be sent on
        return True, value
    if type(value) is float:
        return (True, value) if math.isfinite(value) else (False, None)
    if isinstance(value, list):
        parts = [literal(v) for v in value]
        if all(ok and not isinstance(v, list) for ok, v in parts):
            return True, [v for _, v in parts]
    return False, None


def select(ad: classad2.ClassAd, names: tuple[str, ...] | list[str]) -> tuple[dict[str, Any], list[str]]:
    """Literals of an ad by name, and the names that hold something else, or nothing that can be passed on."""
    values: dict[str, Any] = {}
    expressions: list[str] = []
    size = 0
    for name in names:
        try:
            if name not in ad:
                continue
            value = ad.get(name)
            if isinstance(value, classad2.Value) and value == classad2.Value.Undefined:
                continue
            ok, plain = literal(value)
            needs = len(json.dumps(plain)) if ok else 0
        except Exception:  # noqa: BLE001  bytes that are no UTF-8, lists too deep: the library says it in many ways
            ok, plain, needs = False, None, 0
        if ok and needs <= MAX_VALUE and size + needs <= MAX_AD:
            values[name] = plain
            size += needs
        else:
            expressions.append(name)
    return values, expressions


def fit(slots: dict[str, dict[str, Any]], limit: int = MAX_ANSWER) -> None:
    """Make an answer fit: the largest ads lose their values, and so are held, before the others lose anything."""
    sizes = {name: len(json.dumps(entry, default=_plain)) for name, entry in slots.items()}
    total = sum(sizes.values())
    for name in sorted(sizes, key=lambda n: sizes[n], reverse=True):
        if total <= limit:
            return
        entry = slots[name]
        entry["expressions"] = sorted({*entry["expressions"], *entry["ad"]})
        entry["ad"] = {}
        total -= sizes[name] - len(json.dumps(entry, default=_plain))


def configured_attributes() -> list[str]:
    """STARTD_JOB_ATTRS (and its old name), without repetition."""
    text = " ".join(str(htcondor2.param.get(key) or "") for key in ("STARTD_JOB_ATTRS", "STARTD_JOB_EXPRS"))
    seen: dict[str, str] = {}
    for name in text.replace(",", " ").split():
        seen.setdefault(name.lower(), name)
    return list(seen.values())


def startd_address() -> str:
    path = htcondor2.param.get("STARTD_ADDRESS_FILE")
    if not path:
        raise RuntimeError("STARTD_ADDRESS_FILE is not set in HTCondor's configuration")
    return Path(str(path)).read_text().splitlines()[0].strip()


def answer(question: dict[str, Any]) -> dict[str, Any]:
    if question.get("do") == "reconfigure":
        htcondor2.reload_config()
    names = configured_attributes()
    if question.get("do") != "slots":
        return {"attributes": names}
    address = startd_address()
    wanted = [*META_ATTRIBUTES, *SLOT_ATTRIBUTES, *names]
    slots = {}
    for ad in htcondor2.Collector(address).query(htcondor2.AdType.Startd, projection=wanted):
        meta, _ = select(ad, META_ATTRIBUTES)
        job, expressions = select(ad, names)
        slot, _ = select(ad, [n for n in SLOT_ATTRIBUTES if n.lower() not in {x.lower() for x in names}])
        if "Name" in meta:
            slots[str(meta["Name"])] = {"meta": meta, "ad": job, "expressions": expressions, "slot": slot}
    fit(slots)
    return {"address": address, "attributes": names, "slots": slots}


def _plain(value: object) -> str:
    return value.isoformat() if isinstance(value, datetime.datetime) else str(value)


def main() -> None:
    for line in sys.stdin:
        try:
            reply = answer(json.loads(line))
        except Exception as e:  # noqa: BLE001  whatever the library raises is the agent's to report
            reply = {"error": f"{type(e).__name__}: {e}"}
        sys.stdout.write(json.dumps(reply, default=_plain) + "\n")
        sys.stdout.flush()


if __name__ == "__main__":
    main()
