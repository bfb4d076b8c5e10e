"""The process that holds the campus: builds Mininet's network, says so, and takes it down when its input ends.

Run in namespaces of its own by `lab.Campus`. Invariant: it ends when its owner does; an error is one JSON line.
"""

from __future__ import annotations

import json
import sys
import traceback
from pathlib import Path

import click


@click.command()
@click.option("--root", type=click.Path(path_type=Path), required=True)
@click.option("--policy", type=click.Path(path_type=Path), required=True)
@click.option("--site", type=click.Path(path_type=Path))
@click.option("--engine", default="os-ken")
@click.option("--queues", is_flag=True)
def main(root: Path, policy: Path, site: Path | None, engine: str, queues: bool) -> None:
    from mininet_tests.topology.nodes import CampusTopo, Mininet

    net = None
    try:
        topology = CampusTopo(root=str(root), policy=str(policy), site=str(site or ""), engine=engine, queues=queues)
        net = Mininet(topo=topology, controller=None, build=False)
        net.start()
    except Exception as error:  # noqa: BLE001  # whatever it is, the owner must be told
        traceback.print_exc()
        _say({"failed": f"{type(error).__name__}: {error}"})
    else:
        _say({"ready": True})
        sys.stdin.read()
    if net is not None:
        net.stop()
    _say({"stopped": True})


def _say(what: dict[str, object]) -> None:
    print(json.dumps(what), flush=True)


if __name__ == "__main__":
    main()
