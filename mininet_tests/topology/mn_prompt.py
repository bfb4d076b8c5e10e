"""Mininet's prompt with the lab's commands. Importable only where Mininet is (`debian.provide`)."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from mininet_tests.topology.lab import Campus
from mininet_tests.topology.nodes import CLI
from mininet_tests.topology.prompt import LabCommands


class Prompt(LabCommands, CLI):  # type: ignore[misc]
    """`mn`'s prompt; `job`, `jobs`, `matrix`, `reach`, `stage_out` and `end` besides Mininet's own commands."""

    def __init__(self, net: Any, *arguments: Any, **more: Any) -> None:
        self.campus = Campus.attach(Path(os.environ["LARK_LAB"]), {node.name: node.pid for node in net.values()})
        try:
            CLI.__init__(self, net, *arguments, **more)
        finally:
            self.campus.detach()
