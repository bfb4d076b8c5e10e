"""Jobs on the campus, started through the real lark-agent, with stand-ins for HTCondor's processes.

A stand-in startd (and a starter for each job) is a real process with an executable of its own, real uid 0 and the real
descent: the agent's checks of its callers are all passed, none is switched off. Two things are not real: HTCondor's
scheduling, and the slot ad, which the agent's question to the startd gets from a file (`agent_fakes.py`). The native
helpers, the namespaces, the ports, the registration and the flows are those of production.
"""

from __future__ import annotations

import contextlib
import json
import subprocess
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from mininet_tests.site.namespaces import Machine, SiteError, wait_until
from policies.wire import AttemptSpec, AttemptStatus, Phase

SBIN = "/run/condor/sbin"
LIBEXEC = "/run/lark/libexec"
FAKES = "/run/condor/agent_fakes.py"
STARTD_ADDRESS = "<127.0.0.1:9618?addrs=127.0.0.1-9618&noUDP&sock=startd_7_ab12>"
JOB_UID = 21001


class JobHeld(SiteError):
    """Lark refused to start the job; the text is what its owner would read in `condor_q`."""


@dataclass(slots=True)
class Job:
    """A job on a node. `begin`, `run`, `stage_out` and `end` are the steps of its life."""

    name: str
    node: str
    ad: Mapping[str, Any]
    execution: Execution
    starter: str
    slot: str
    pid: int
    phase: Phase = Phase.STAGE_IN
    process: int | None = None
    status: AttemptStatus | None = None
    """As the controller saw it at the last step; None before the first and after the end."""
    ended: bool = False

    @property
    def spec(self) -> AttemptSpec:
        """What the agent told the controller. Raises SiteError before the job has begun."""
        if self.status is None:
            raise SiteError(f"{self.name} has not begun")
        return self.status.spec

    def begin(self) -> None:
        """PREPARE_JOB_BEFORE_TRANSFER: from here on the job has its network, in phase stage-in. Raises JobHeld."""
        said = self.execution.run(self.starter, f"{LIBEXEC}/lark-hook-prepare")
        if "HookStatusCode" in said or "HookStatusMessage" in said:
            raise JobHeld(f"{self.name}: {said.strip()}")

    def run(self) -> None:
        """The job's own process starts, through the job wrapper."""
        words = ["lark-job-wrapper", "/usr/bin/sleep", "100000"]
        asked = self.execution.ask(
            to=self.starter, do="spawn", argv=words, uid=JOB_UID, exe=f"{LIBEXEC}/lark-job-wrapper"
        )
        self.process = int(asked["pid"])
        self.phase = Phase.RUN

        def inside() -> bool:
            # The wrapper waits for the job: only then is it in its network.
            told = self.execution.machine.run(["cat", f"/proc/{self.process}/comm"])
            if told.code != 0 or told.out.strip() not in ("lark-job-waits", "lark-job-wrappe", "lark-job"):
                said = self.execution.ask(to=self.starter, do="wait", pid=self.process, timeout=2)
                raise JobHeld(f"{self.name}: {said.get('out', '')}{said.get('err', '')}".strip())
            return told.out.strip() == "lark-job-waits"

        wait_until(f"job {self.name} runs", inside, 30, 0.02)

    def stage_out(self) -> None:
        """The job's process ends; its output would be transferred now."""
        if self.process is not None:
            self.execution.ask(to=self.starter, do="signal", pid=self.process, signal=15)
            self.execution.ask(to=self.starter, do="wait", pid=self.process, timeout=10)
            self.process = None
        self.phase = Phase.STAGE_OUT

    def end(self) -> None:
        """The starter ends, and with it everything the job was given."""
        if not self.ended:
            self.execution.ask(do="kill", name=self.starter)
            self.ended = True
            self.process = None


@dataclass(slots=True)
class Execution:
    """A worker node's stand-in for HTCondor."""

    machine: Machine
    slots_file: Path
    attributes: frozenset[str]
    """STARTD_JOB_ATTRS, in lower case: of a job's ad the agent gets no more than these, as from a real startd."""
    startd: subprocess.Popen[str] | None = None
    slots: dict[str, Any] = field(default_factory=dict)
    count: int = 0

    def ask(self, **command: Any) -> dict[str, Any]:
        if self.startd is None:
            argv = self.machine.argv([f"{SBIN}/condor_startd", FAKES, "startd"], None, None)
            self.startd = subprocess.Popen(
                argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, start_new_session=True
            )
        assert self.startd.stdin is not None
        assert self.startd.stdout is not None
        self.startd.stdin.write(json.dumps(command) + "\n")
        self.startd.stdin.flush()
        line = self.startd.stdout.readline()
        if not line:
            raise SiteError(f"the stand-in for HTCondor on {self.machine.name} has ended")
        return dict(json.loads(line))

    def run(self, starter: str, helper: str) -> str:
        """Run one of the native helpers as a child of a starter; what it said."""
        name = Path(helper).name
        asked = self.ask(to=starter, do="spawn", argv=[name], uid=JOB_UID, exe=helper)
        said = self.ask(to=starter, do="wait", pid=asked["pid"], timeout=60)
        if said.get("running"):
            raise SiteError(f"{name} on {self.machine.name} does not end")
        return str(said["out"]) + str(said["err"])

    def start(self, name: str, ad: Mapping[str, Any]) -> Job:
        """A starter on a slot of its own, whose ad the startd knows. The job has not begun yet."""
        self.count += 1
        node = self.machine.name
        slot = f"slot1_{self.count}"
        identity = {"JobId": f"{self.count}.0", "GlobalJobId": f"{name}#{self.count}.0", "JobStart": int(time.time())}
        self.slots[f"{slot}@{node}"] = {
            "meta": identity,
            "ad": {key: value for key, value in ad.items() if key.lower() in self.attributes},
            "expressions": [],
            "slot": {"Name": f"{slot}@{node}"},
        }
        self._write()
        asked = self.ask(do="starter", name=slot, exe=f"{SBIN}/condor_starter", slot=slot, uid=0, parent=STARTD_ADDRESS)
        return Job(name, node, dict(ad), self, slot, slot, int(asked["pid"]))

    def _write(self) -> None:
        known = json.loads(self.slots_file.read_text(encoding="utf-8"))
        new = self.slots_file.with_name("slots.new")
        new.write_text(json.dumps(known | {"slots": self.slots}), encoding="utf-8")
        new.rename(self.slots_file)

    def stop(self) -> None:
        if self.startd is None:
            return
        for stream in (self.startd.stdin, self.startd.stdout):
            assert stream is not None
            with contextlib.suppress(BrokenPipeError):
                stream.close()
        self.startd.terminate()
        self.startd.wait(10)
        self.startd = None
