"""The order to drain a node: a file in the agent's state directory, which an administrator puts there and takes away.

While it is there the node advertises no job network and begins no attempt; those that run go on to their end. A file,
because it must survive what a drain is for: a stop, an upgrade, a reboot. The agent looks at it whenever it is asked,
so an order holds from the moment at which it is written, whether the agent runs or not.

Invariants: what cannot be read counts as an order (fail closed). Only root can write there.
"""

from __future__ import annotations

import json
import os
from pathlib import Path

from pydantic import BaseModel, ConfigDict, ValidationError

from ovs_agent.errors import AgentError

FILE = "drain.json"


class Order(BaseModel):
    """Why and since when (as an administrator writes a time)."""

    model_config = ConfigDict(extra="forbid", frozen=True)
    since: str
    reason: str = ""

    def text(self) -> str:
        return f"this node is being drained since {self.since}" + (f": {self.reason}" if self.reason else "")


class Drain:
    """The order of one node."""

    def __init__(self, state_dir: Path) -> None:
        self._file = state_dir / FILE

    def order(self) -> Order | None:
        """None: this node takes jobs."""
        try:
            return Order.model_validate(json.loads(self._file.read_bytes()))
        except FileNotFoundError:
            return None
        except (OSError, ValueError, ValidationError):
            return Order(since="?", reason=f"{self._file} cannot be read; lark-agent drain --undo takes it away")

    def give(self, order: Order) -> None:
        """Complete or absent, whatever happens meanwhile; an order that is there is replaced."""
        new = self._file.with_name(f".{self._file.name}.{os.getpid()}.new")
        try:
            self._file.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            with new.open("w") as f:
                f.write(order.model_dump_json())
                f.flush()
                os.fsync(f.fileno())
            os.replace(new, self._file)
        except OSError as e:
            raise AgentError(f"cannot be written: {e.strerror}", str(self._file)) from None

    def take_back(self) -> bool:
        """False: there was none."""
        try:
            self._file.unlink()
        except FileNotFoundError:
            return False
        except OSError as e:
            raise AgentError(f"cannot be removed: {e.strerror}", str(self._file)) from None
        return True
