"""What `/metrics` tells Prometheus: gauges and counters as they are at the moment of the question, and how long
registrations take.

Invariant: no label has a value that jobs could multiply: bridges, ports and nodes are those of `site.yaml`, classes
those of the policy, reasons and outcomes those of the code. An attempt's own counters are in `GET /v1/attempts/{id}`.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING

from prometheus_client import (
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    ProcessCollector,
    disable_created_metrics,
    generate_latest,
)
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric

from policies.events import Kind
from policies.wire import BridgeStatus, NodeStatus, SiteStats
from ryu_apps.admission import Load
from ryu_apps.life.counting import Cost
from ryu_apps.refusals import Refused
from ryu_apps.store.store import Store

if TYPE_CHECKING:
    from ryu_apps.controller import Controller

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
# Each would get a second line of when it was made; `process_start_time_seconds` says it.
disable_created_metrics()  # type: ignore[no-untyped-call]
_BUCKETS = (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10)
_CLASS = ("bridge", "port", "direction", "class")


class Metrics:
    """One for a controller; `text` is an answer to Prometheus."""

    def __init__(self) -> None:
        # With a registry of our own there is nothing in the answer that is not listed in docs/operations.md.
        self._registry = CollectorRegistry()
        self._took = Histogram(
            "lark_registration_seconds",
            "From a new attempt's registration until its policy was in force and its row durable.",
            buckets=_BUCKETS,
            registry=self._registry,
        )
        self._outcomes = Counter(
            "lark_registrations",
            "Registrations by what became of them: in-force, again (it was known), or the problem's slug.",
            ("outcome",),
            registry=self._registry,
        )
        self._reloaded = Gauge(
            "lark_reload_succeeded",
            "1: what the files said at the last SIGHUP, or at the start, is in force.",
            registry=self._registry,
        )
        self.reloaded(True)
        ProcessCollector(registry=self._registry)
        self._source: Controller | None = None
        self._registry.register(self)

    @contextlib.contextmanager
    def registration(self) -> Iterator[list[bool]]:
        """Around one; the block appends whether the attempt is new."""
        began, new = time.perf_counter(), list[bool]()
        try:
            yield new
        except Refused as refused:
            self._outcomes.labels(refused.slug.value).inc()
            raise
        if new and new[0]:
            self._took.observe(time.perf_counter() - began)
        self._outcomes.labels("in-force" if new and new[0] else "again").inc()

    def reloaded(self, succeeded: bool) -> None:
        self._reloaded.set(succeeded)

    def text(self, controller: Controller) -> bytes:
        self._source = controller
        return generate_latest(self._registry)

    def collect(self) -> Iterator[Metric]:
        source = self._source
        if source is None:
            return
        stats = source.stats()
        for part in (
            _jobs(stats),
            _classes(stats),
            _bridges(source.bridges()),
            _nodes(source.nodes()),
            [_gauge("lark_attempts_leaving", "Ended attempts that some bridge still may know.", source.leaving)],
            _store(source.store),
            _cost(source.counting.cost),
            _load(source.admission.load),
            _events(source.events.happened),
        ):
            for family in part:
                yield family
                time.sleep(0)  # a large site has thousands of lines: others get their turn

    def describe(self) -> Iterator[Metric]:
        """Nothing beforehand: what there is follows from site and policy."""
        return iter(())


def _gauge(name: str, text: str, value: float) -> Metric:
    return GaugeMetricFamily(name, text, value=value)


def _counter(name: str, text: str, value: float) -> Metric:
    return CounterMetricFamily(name, text, value=value)


def _jobs(stats: SiteStats) -> Iterator[Metric]:
    jobs = stats.jobs
    yield _gauge("lark_attempts", "Attempts under control.", jobs.attempts)
    octets = CounterMetricFamily("lark_job_bytes", "Bytes of all jobs, Ethernet included.", labels=("direction",))
    packets = CounterMetricFamily("lark_job_packets", "Packets of all jobs.", labels=("direction",))
    for direction, size, count in (
        ("sent", jobs.sent_bytes, jobs.sent_packets),
        ("received", jobs.received_bytes, jobs.received_packets),
    ):
        octets.add_metric((direction,), size)
        packets.add_metric((direction,), count)
    yield octets
    yield packets
    refused = CounterMetricFamily("lark_refused_packets", "Packets refused to jobs, by reason.", labels=("reason",))
    refused_octets = CounterMetricFamily("lark_refused_bytes", "The bytes of these.", labels=("reason",))
    for one in jobs.refused:
        refused.add_metric((one.reason,), one.packets)
        refused_octets.add_metric((one.reason,), one.bytes)
    yield refused
    yield refused_octets
    limited = CounterMetricFamily(
        "lark_limited_packets", "Packets of jobs that were more than a rate or a share.", labels=("by", "direction")
    )
    limited_octets = CounterMetricFamily("lark_limited_bytes", "The bytes of these.", labels=("by", "direction"))
    for by, dropped in (("rate", jobs.rate_dropped), ("share", jobs.share_dropped)):
        limited.add_metric((by, "sent"), dropped.sent_packets)
        limited.add_metric((by, "received"), dropped.received_packets)
        limited_octets.add_metric((by, "sent"), dropped.sent_bytes)
        limited_octets.add_metric((by, "received"), dropped.received_bytes)
    yield limited
    yield limited_octets
    ages = GaugeMetricFamily(
        "lark_border_report_age_seconds", "Since a border's agent last reported its queues.", labels=("bridge",)
    )
    in_force = GaugeMetricFamily(
        "lark_border_queues_in_force",
        "1: the queues are as the policy wishes them, without a fault.",
        labels=("bridge",),
    )
    for border in stats.borders:
        if border.age is not None:
            ages.add_metric((border.bridge,), border.age)
        in_force.add_metric((border.bridge,), float(border.in_force))
    yield ages
    yield in_force
    packets = CounterMetricFamily(
        "lark_border_refused_packets", "Packets that a border's own flows refused.", labels=("bridge", "reason")
    )
    octets = CounterMetricFamily("lark_border_refused_bytes", "The bytes of these.", labels=("bridge", "reason"))
    for border in stats.borders:
        for one in border.refused:
            packets.add_metric((border.bridge, one.reason), one.packets)
            octets.add_metric((border.bridge, one.reason), one.bytes)
    yield packets
    yield octets


def _classes(stats: SiteStats) -> Iterator[Metric]:
    # Before the first report the queues are not known: 0 would be taken for a counter that has begun anew, and all that
    # they carried before would count twice.
    reported = {border.bridge for border in stats.borders if border.age is not None}
    counters = {
        "bytes": "Bytes that a class has sent by a port of a border, Ethernet included.",
        "packets": "Packets that a class has sent by a port of a border.",
        "drops": "Packets of a class that its full queue has dropped.",
    }
    gauges = {
        "backlog": ("backlog_bytes", "Bytes of a class that wait now."),
        "rate": ("rate_bits_per_second", "bit/s of a class over the last seconds."),
        "guarantee": ("guarantee_bits_per_second", "bit/s that a class is guaranteed."),
        "ceiling": ("ceiling_bits_per_second", "bit/s that a class may have at most."),
    }
    families: dict[str, Metric] = {
        **{key: CounterMetricFamily(f"lark_class_{key}", text, labels=_CLASS) for key, text in counters.items()},
        **{key: GaugeMetricFamily(f"lark_class_{name}", text, labels=_CLASS) for key, (name, text) in gauges.items()},
    }
    for one in stats.classes:
        labels = (one.bridge, one.port, one.direction, one.name)
        for key, family in families.items():
            if one.bridge not in reported and key not in ("guarantee", "ceiling"):
                continue
            family.add_metric(labels, getattr(one, key))  # type: ignore[attr-defined]
    yield from families.values()


def _bridges(bridges: list[BridgeStatus]) -> Iterator[Metric]:
    connected = GaugeMetricFamily("lark_bridge_connected", "1: the bridge is connected here.", labels=("bridge",))
    converged = GaugeMetricFamily(
        "lark_bridge_converged",
        "1: all that is wanted of the bridge is confirmed, and no flow of others in table 0 goes past it.",
        labels=("bridge",),
    )
    flows = GaugeMetricFamily("lark_bridge_flows", "Flows of Lark's on the bridge.", labels=("bridge",))
    missing = GaugeMetricFamily(
        "lark_bridge_ports_missing", "Declared ports that a connected bridge lacks: it is closed.", labels=("bridge",)
    )
    foreign = GaugeMetricFamily(
        "lark_bridge_foreign_flows", "Flows on the bridge that are not Lark's, as last seen.", labels=("bridge",)
    )
    for one in bridges:
        foreign.add_metric((one.bridge,), one.foreign_flows)
        missing.add_metric((one.bridge,), len(one.missing))
        connected.add_metric((one.bridge,), float(one.connected))
        converged.add_metric((one.bridge,), float(one.converged and not one.bypassed))
        flows.add_metric((one.bridge,), one.flows)
    yield foreign
    yield missing
    yield connected
    yield converged
    yield flows


def _nodes(nodes: list[NodeStatus]) -> Iterator[Metric]:
    left = GaugeMetricFamily(
        "lark_node_lease_seconds",
        "Seconds until a node's lease ends; none for a node that never registered or talks to another controller.",
        labels=("node",),
    )
    attempts = GaugeMetricFamily("lark_node_attempts", "Attempts on a node.", labels=("node",))
    for one in nodes:
        attempts.add_metric((one.node,), one.attempts)
        if one.lease_left is not None:
            left.add_metric((one.node,), one.lease_left)
    yield left
    yield attempts


def _store(store: Store) -> Iterator[Metric]:
    counts = store.counts
    yield _gauge("lark_store_reachable", "1: the store answers.", float(store.trouble is None))
    yield _counter("lark_store_transactions", "Transactions that became durable.", counts.transactions)
    yield _counter("lark_store_writes", "Writes in them.", counts.writes)
    yield _counter("lark_store_seconds", "Seconds from sending a transaction until it was durable.", counts.seconds)


def _cost(cost: Cost) -> Iterator[Metric]:
    yield _counter("lark_counting_questions", "Questions for counters put to switches.", cost.questions)
    yield _counter(
        "lark_counting_put_off",
        "Those that came while a bridge was being programmed, and were asked later.",
        cost.put_off,
    )
    yield _counter("lark_counting_unanswered", "Those given up.", cost.unanswered)
    yield _counter("lark_counting_flows", "Flows whose counters were read.", cost.flows)
    yield _counter("lark_counting_meters", "Meters whose counters were read.", cost.meters)
    yield _counter("lark_counting_cpu_seconds", "CPU time for reading them.", cost.seconds)
    yield _gauge("lark_counting_round_seconds", "What the last round over all bridges took.", cost.sweep)


def _events(happened: Mapping[Kind, int]) -> Iterator[Metric]:
    family = CounterMetricFamily("lark_events", "Events by kind, also those held back.", labels=("kind",))
    for kind in Kind:
        family.add_metric((kind.value,), happened.get(kind, 0))
    yield family


def _load(load: Load) -> Iterator[Metric]:
    yield _gauge("lark_registrations_under_way", "Registrations that are being worked on.", load.registrations)
    yield _gauge("lark_behind_seconds", "How late the controller's turns are.", load.behind)
    yield _counter("lark_registrations_turned_away", "Registrations told to come again later.", load.turned_away)
