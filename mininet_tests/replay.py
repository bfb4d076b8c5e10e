"""Ask all three judges about a case: `python -m mininet_tests.replay case.yaml` (or `-` for standard input).

The file is what a failing test prints (see `tests.cases`). No privilege is needed.
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

from mininet_tests.third_judge import ThirdJudge
from policies.decide import Held, decide
from ryu_apps.openflow.pipeline import Table
from ryu_apps.openflow.text import flow_text
from tests.cases import Case, packet_text, packet_words, policy_of, read_case, world_of
from tests.judges import Bench, Disagreement, Hop, first_hop, meant, next_hop, verdict


def replay(case: Case) -> bool:
    """Print what each judge says of each packet at each bridge; whether all agree."""
    world = world_of(case)
    for name, job in case.jobs.items():
        try:
            decision = decide(policy_of(case.policy), job.node, job.ad, {}, job.phase)
        except Held as held:
            print(f"{name} is held: {held}")
            continue
        print(
            f"{name} on {job.node}, {job.phase}: {', '.join(text for _, text in decision.trail) or 'no rule fits it'}"
        )
    agreed = True
    with tempfile.TemporaryDirectory() as directory, ThirdJudge(Path(directory)) as third:
        bench = Bench(world)
        for sent in case.packets:
            print(f"\n{packet_text(sent)}\n  {packet_words(world, sent)}")
            hop: Hop | None = first_hop(world, sent)
            while hop is not None:
                judgement, should = verdict(world, hop), meant(world, hop)
                does, trail, committed = bench.send(hop)
                print(f"  {hop.bridge}, port {hop.in_port}")
                print(f"    meaning:      {judgement.verdict}: {judgement.text} ({judgement.place})\n      {should}")
                print(f"    flows:        {does}, remembering {set(committed) or 'nothing'}")
                for flow in trail:
                    print(f"      {Table(flow.table).name}: {flow_text(flow)}")
                print(f"    Open vSwitch: {third.send(bench, hop)}")
                hop = next_hop(world, hop, does) if does.outputs else None
            try:
                third.judge(case, bench, sent)
                print("  all agree")
            except Disagreement as found:
                agreed = False
                print(f"  DISAGREEMENT {str(found).splitlines()[3].removeprefix('# ')}")
    return agreed


def main() -> int:
    if len(sys.argv) != 2:
        print("usage: python -m mininet_tests.replay FILE (- for standard input)", file=sys.stderr)
        return 2
    text = sys.stdin.read() if sys.argv[1] == "-" else Path(sys.argv[1]).read_text()
    return 0 if replay(read_case(text)) else 1


if __name__ == "__main__":
    sys.exit(main())
