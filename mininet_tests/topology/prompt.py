"""What one types into a running campus: jobs and the matrix. For the prompt of `lark-lab`, and for that of `mn`.

Invariant: a mistake is one sentence at the prompt, and the campus goes on.
"""

from __future__ import annotations

import cmd
import functools
import shlex
import sys
from collections.abc import Callable
from typing import Any, TypeVar

import click
from rich.console import Console
from rich.table import Table
from ruamel.yaml import YAML
from ruamel.yaml.error import YAMLError

from mininet_tests.site.namespaces import SiteError
from mininet_tests.topology.jobs import Job
from mininet_tests.topology.lab import Campus

CONSOLE = Console()
Some = TypeVar("Some", bound="LabCommands")


def _told(work: Callable[[Some, list[str]], None]) -> Callable[[Some, str], None]:
    """Splits the line as a shell does, and prints what goes wrong."""

    @functools.wraps(work)
    def run(self: Some, line: str) -> None:
        try:
            work(self, shlex.split(line))
        except (SiteError, ValueError, KeyError) as error:
            CONSOLE.print(f"[red]{error}[/red]", highlight=False)

    return run


class LabCommands:
    """Commands about jobs, for a `cmd.Cmd`."""

    campus: Campus

    @_told
    def do_job(self, words: list[str]) -> None:
        """job NAME NODE [Attribute=value ...]: start a job. A value is written as in YAML: 5, true, text."""
        if len(words) < 2:
            raise SiteError("write: job NAME NODE [Attribute=value ...], for example: job alice wn1 LarkGroup=physics")
        job = self.campus.start_job(words[1], parse_ad(words[2:]), words[0])
        CONSOLE.print(f"{job.name} runs on {job.node}: {job.spec.ipv4} {job.spec.ipv6 or ''}", highlight=False)

    @_told
    def do_stage_out(self, words: list[str]) -> None:
        """stage_out NAME: the job's process ends; it is in phase stage-out until `end`."""
        self.campus.stage_out(self._job(words))

    @_told
    def do_end(self, words: list[str]) -> None:
        """end NAME: the job ends, and everything it was given goes."""
        self.campus.end_job(self._job(words))

    @_told
    def do_jobs(self, _words: list[str]) -> None:
        """jobs: what runs, where, and what the policy gave it."""
        table = Table("job", "node", "phase", "IPv4", "IPv6", "reaches", "slice")
        for job in self.campus.jobs.values():
            assert job.status is not None
            given = job.status.decision
            reaches = "sealed" if given.sealed else " ".join(given.grants)
            spec = job.spec
            table.add_row(job.name, job.node, spec.phase, spec.ipv4, spec.ipv6 or "", reaches, given.slice or "")
        CONSOLE.print(table)

    @_told
    def do_matrix(self, words: list[str]) -> None:
        """matrix [tcp/1094 icmp ...]: who reaches whom, measured and as the policy means."""
        show(self.campus, words or None)

    @_told
    def do_reach(self, words: list[str]) -> None:
        """reach SOURCE TARGET PORT: for example, reach alice fileserver tcp/1094."""
        if len(words) != 3:
            raise SiteError("write: reach SOURCE TARGET PORT, for example: reach alice fileserver tcp/1094")
        for cell in self.campus.ask(words[0], words[1], words[2]).cells:
            said = "answers" if cell.measured.answered else "arrives, no answer" if cell.measured.arrived else "stopped"
            CONSOLE.print(f"{cell.probe.address}: {said} ({cell.expected.line})", highlight=False)
            if cell.differs:
                CONSOLE.print(f"  [red]{cell.differs}[/red]", highlight=False)

    def _job(self, words: list[str]) -> Job:
        if len(words) != 1 or words[0] not in self.campus.jobs:
            raise SiteError(f"name one of the jobs: {', '.join(self.campus.jobs) or 'there are none'}")
        return self.campus.jobs[words[0]]


class LabPrompt(LabCommands, cmd.Cmd):
    """The prompt of `lark-lab campus`."""

    prompt = "lark-lab> "
    intro = "Commands: job jobs matrix reach stage_out end on larkctl help exit"

    def __init__(self, campus: Campus) -> None:
        super().__init__()
        self.campus = campus

    @_told
    def do_on(self, words: list[str]) -> None:
        """on MACHINE COMMAND ...: run a command there, for example: on gate ovs-vsctl show."""
        if len(words) < 2:
            raise SiteError(f"write: on MACHINE COMMAND; machines: {' '.join(self.campus.machines)}")
        said = self.campus.machine(words[0]).run(words[1:])
        sys.stdout.write(said.out + said.err)

    @_told
    def do_larkctl(self, words: list[str]) -> None:
        """larkctl attempts|attempt ID|nodes|bridges|policy: what the controller says."""
        sys.stdout.write(self.campus.larkctl(*words) + "\n")

    def do_exit(self, _line: str) -> bool:
        """exit: end the campus and everything on it. So does Ctrl-D."""
        return True

    def do_EOF(self, _line: str) -> bool:
        """The same."""
        click.echo()
        return True

    def emptyline(self) -> bool:
        return False


def parse_ad(words: list[str]) -> dict[str, Any]:
    """`Name=value` words as an ad. Raises SiteError."""
    ad = {}
    for word in words:
        name, equals, text = word.partition("=")
        if not equals or not name:
            raise SiteError(f"{word!r}: write Attribute=value")
        try:
            ad[name] = YAML(typ="safe").load(text) if text else ""
        except YAMLError as error:
            raise SiteError(f"{word!r}: {error}") from None
    return ad


def show(campus: Campus, ports: list[str] | None = None) -> bool:
    """Measure and print the matrix; whether it is as the policy means."""
    matrix = campus.matrix(ports)
    CONSOLE.print(matrix.table())
    for text in matrix.differences:
        CONSOLE.print(f"[red]{text}[/red]", highlight=False)
    return not matrix.differences
