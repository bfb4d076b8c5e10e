"""What happens that an administrator should know: a small list of kinds, each with what it means and what to do.

Invariants: the list is the same for whoever tells (controller, agents), whoever counts (`lark_events_total{kind}`) and
whoever reads (`docs/events.md` has a row for each). Kinds of one topic tell the same story: they keep their order, and
are held back together when there are too many.
"""

from __future__ import annotations

import enum
from collections.abc import Mapping
from dataclasses import dataclass


class Level(enum.StrEnum):
    """How bad it is."""

    INFO = "info"
    WARNING = "warning"
    ERROR = "error"


class Kind(enum.StrEnum):
    """What happened."""

    BRIDGE_CONNECTED = "bridge-connected"
    BRIDGE_ADOPTED = "bridge-adopted"
    BRIDGE_LOST = "bridge-lost"
    BRIDGE_DUPLICATE = "bridge-duplicate"
    BRIDGE_TURNED_AWAY = "bridge-turned-away"
    BRIDGE_CLOSED = "bridge-closed"
    BRIDGE_OPENED = "bridge-opened"
    BRIDGE_MENDED = "bridge-mended"
    BRIDGE_METERLESS = "bridge-meterless"
    FAIL_MODE_WRONG = "fail-mode-wrong"
    TABLE_BYPASSED = "table-bypassed"
    TABLE_FOREIGN = "table-foreign"
    TABLE_EMPTY = "table-empty"
    FLOWS_REPAIRED = "flows-repaired"
    FLOWS_REFUSED = "flows-refused"
    PORT_RENUMBERED = "port-renumbered"
    WAN_PORT_MISSING = "wan-port-missing"
    WAN_PORT_DOWN = "wan-port-down"
    WAN_PORT_BACK = "wan-port-back"
    WAN_PORT_SPEED_CHANGED = "wan-port-speed-changed"
    BORDER_QDISC_FOREIGN = "border-qdisc-foreign"
    QUEUES_REPAIRED = "queues-repaired"
    BORDER_FAULT = "border-fault"
    BORDER_MENDED = "border-mended"
    LEASE_ENDED = "lease-ended"
    REGISTRATION_REFUSED = "registration-refused"
    CAPACITY = "capacity"
    STORE_LOST = "store-lost"
    STORE_BACK = "store-back"
    POLICY_LOADED = "policy-loaded"
    POLICY_REFUSED = "policy-refused"
    CONTROLLER_TOOK_OVER = "controller-took-over"
    CONTROLLER_GAVE_UP = "controller-gave-up"


@dataclass(frozen=True, slots=True)
class About:
    """Of a kind. `mend`: what to do, in a sentence; empty where there is nothing to do."""

    topic: str
    level: Level
    mend: str = ""


_INFO, _WARNING, _ERROR = Level.INFO, Level.WARNING, Level.ERROR
ABOUT: Mapping[Kind, About] = {
    Kind.BRIDGE_CONNECTED: About("connection", _INFO),
    Kind.BRIDGE_ADOPTED: About("connection", _INFO),
    Kind.BRIDGE_LOST: About(
        "connection", _WARNING,
        "the switch goes on with the flows it has; see on its host that ovs-vswitchd runs, and in `ovs-vsctl show` "
        "whether the controller is_connected",
    ),
    Kind.BRIDGE_DUPLICATE: About(
        "doorway", _WARNING,
        "give each bridge a datapath id of its own: lark-agent prepare-bridge --datapath-id, as in site.yaml",
    ),
    Kind.BRIDGE_TURNED_AWAY: About(
        "doorway", _WARNING,
        "if it is one of yours, mend its datapath-id, address or certificate in site.yaml or on its host; if not, "
        "somebody else's switch is pointed at this controller",
    ),
    Kind.BRIDGE_CLOSED: About(
        "declared-ports", _ERROR, "plug the port in (lark-agent prepare-bridge --uplink), or mend site.yaml and restart"
    ),
    Kind.BRIDGE_OPENED: About("declared-ports", _INFO),
    Kind.BRIDGE_MENDED: About("bridge", _INFO),
    Kind.BRIDGE_METERLESS: About(
        "meters", _WARNING,
        "give the host a newer kernel (4.15 or later) or Open vSwitch, or keep rates and shares off its jobs",
    ),
    Kind.FAIL_MODE_WRONG: About(
        "bridge", _WARNING, "on its host: lark-agent prepare-bridge, with the role and the ports it has"
    ),
    Kind.TABLE_BYPASSED: About(
        "bridge", _ERROR,
        "what such a flow takes goes past the whole policy: remove it (ovs-ofctl -O OpenFlow14 --strict del-flows "
        "BRIDGE with the example up to its cookie) and find who writes it",
    ),
    Kind.TABLE_FOREIGN: About(
        "bridge", _WARNING,
        "find who writes flows there (ovs-ofctl -O OpenFlow14 dump-flows BRIDGE, other controllers in ovs-vsctl "
        "show) and remove them: Lark leaves what is not its own",
    ),
    Kind.TABLE_EMPTY: About(
        "bridge", _WARNING,
        "start lark-agent on a worker, lark-agent keep-bridge elsewhere, or run lark-agent prepare-bridge once",
    ),
    Kind.FLOWS_REPAIRED: About(
        "flows", _WARNING, "nothing is left to mend; find who changes flows on that switch, and stop it"
    ),
    Kind.FLOWS_REFUSED: About(
        "flows", _WARNING,
        "look at the reason that the switch gives: a full table (flow_limit in ovs-vsctl list Flow_Table) or a version "
        "too old; it is tried again",
    ),
    Kind.PORT_RENUMBERED: About("declared-ports", _INFO),
    Kind.WAN_PORT_MISSING: About(
        "wan", _ERROR, "plug the device in again (ovs-vsctl add-port BRIDGE PORT), or mend `wan` in site.yaml"
    ),
    Kind.WAN_PORT_DOWN: About("wan", _ERROR, "see the cable and the other end; on the border: ip link set PORT up"),
    Kind.WAN_PORT_BACK: About("wan", _INFO),
    Kind.WAN_PORT_SPEED_CHANGED: About(
        "wan", _WARNING,
        "if the link is slower than `rate` in site.yaml, frames wait in the device and not in their classes: mend the "
        "link, or the rate",
    ),
    Kind.BORDER_QDISC_FOREIGN: About(
        "queues", _ERROR, "stop what shapes that port, then on the border: tc qdisc del dev PORT root"
    ),
    Kind.QUEUES_REPAIRED: About(
        "queues", _WARNING, "nothing is left to mend; find who runs tc on the border, and stop it"
    ),
    Kind.BORDER_FAULT: About("queues", _WARNING, "the sentence says what is wrong; larkctl bridges shows all of them"),
    Kind.BORDER_MENDED: About("queues", _INFO),
    Kind.LEASE_ENDED: About(
        "lease", _WARNING, "see that the node is up and lark-agent runs on it: lark-agent doctor on the node"
    ),
    Kind.REGISTRATION_REFUSED: About(
        "registration", _WARNING,
        "the sentence says why; `held` is the job's or the policy's doing, all else is to be mended on the node or in "
        "site.yaml",
    ),
    Kind.CAPACITY: About(
        "capacity", _WARNING,
        "agents try again by themselves; if it goes on, see who sends so much (lark_registrations_turned_away_total) "
        "and give the controller more of a processor",
    ),
    Kind.STORE_LOST: About(
        "store", _ERROR, "no job can start until it is back: see its disk and its processes (docs/store.md)"
    ),
    Kind.STORE_BACK: About("store", _INFO),
    Kind.POLICY_LOADED: About("policy", _INFO),
    Kind.POLICY_REFUSED: About(
        "policy", _ERROR, "what was in force stays; mend the file (lark-controller check), then send SIGHUP again"
    ),
    Kind.CONTROLLER_TOOK_OVER: About("mastership", _INFO),
    Kind.CONTROLLER_GAVE_UP: About(
        "mastership", _WARNING, "see that the other controller runs and reaches the store; bridges have one master"
    ),
}  # fmt: skip
