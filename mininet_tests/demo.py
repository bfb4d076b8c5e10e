"""`make demo`: builds a small real site, tells the story with evidence, takes it down, and proves that it is gone.

Invariants: the exit status is 0 only when every claim of every chapter was shown with its evidence and the judge found
nothing left behind; it can be interrupted at any moment, and again while it cleans up, and leaves nothing; what it
prints reads well without colour.
"""

from __future__ import annotations

import platform
import shlex
import signal
import sys
import time
from collections.abc import Sequence
from types import FrameType
from typing import NoReturn

import click
from rich.console import Console
from rich.text import Text

from mininet_tests.site import campus
from mininet_tests.site.campus import Check, Site, SiteError
from mininet_tests.site.lark import ENVIRONMENT
from mininet_tests.story import CHAPTERS, Chapter
from mininet_tests.telling import Claim, Telling

LABEL = "lark-demo"
LIMIT = 180
"""Seconds within which the whole demo ends on a quiet machine, installs apart. Being slower proves nothing wrong, so it
is said and does not fail the demo."""
MOST_LINES = 14


class Printer:
    """Prints headings, claims and evidence. Marks are words, so that nothing depends on colour."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._began = time.monotonic()

    def line(self, text: str, style: str = "") -> None:
        self._console.print(Text(text, style=style), soft_wrap=True)

    def heading(self, text: str) -> None:
        self.line("")
        self.line(f"== {text}  [{self.seconds():.0f} s]", "bold")

    def step(self, text: str) -> None:
        self.line(f"   [{self.seconds():5.1f} s] {text}", "dim")

    def claim(self, claim: Claim) -> None:
        mark = ("ok " if claim.true else "NOT SHOWN ") + ("(control) " if claim.control else "")
        self.line(f"   {mark}{claim.text}", "green" if claim.true else "bold red")
        shown = claim.evidence if not claim.true else claim.evidence[:MOST_LINES]
        for line in shown:
            self.line(f"        | {line}", "dim")
        if len(shown) < len(claim.evidence):
            self.line(f"        | … {len(claim.evidence) - len(shown)} more lines", "dim")

    def check(self, check: Check) -> None:
        self.line(
            f"   {'ok ' if not check.problems else 'LEFT BEHIND '}{check.what}", "" if not check.problems else "red"
        )
        for problem in check.problems:
            self.line(f"        | {problem}", "bold red")
        for note in check.notes:
            self.line(f"        | {note}", "dim")

    def seconds(self) -> float:
        return time.monotonic() - self._began


def versions(site: Site) -> list[str]:
    """What the story runs on."""
    with open("/etc/os-release", encoding="utf-8") as release:
        system = next(
            (line.split("=", 1)[1].strip().strip('"') for line in release if line.startswith("PRETTY_NAME")), ""
        )
    xrootd = site.machines["fs"].run(["xrootd", "-v"])
    return [
        f"machine     {system}, Linux {platform.release()}, Python {platform.python_version()}",
        f"controller  {site.controller.ready_line}",
        f"agent       {site.agent.ready_line}",
        f"switches    Open vSwitch {site.switches['gate'].version()}, userspace datapath",
        f"pool        HTCondor {site.pool.version()} from {site.prefix}",
        f"file server xrootd {xrootd.text.splitlines()[0] if xrootd.text else 'unknown'}",
        f"jobs        {campus.ALICE} (group physics), {campus.BOB} (no group)",
    ]


def tell(site: Site, chapters: Sequence[Chapter], printer: Printer) -> list[str]:
    """Tell the chapters; the list of what was not shown."""
    missing = []
    for number, chapter in enumerate(chapters, start=1):
        printer.heading(f"{number}. {chapter.title}")
        missing += [f"{chapter.slug}: {problem}" for problem in chapter.problems(site, Telling(printer.claim))]
    return missing


TRY_A_JOB = (
    "executable = /usr/bin/sleep",
    "arguments = 300",
    "transfer_executable = false",
    "should_transfer_files = YES",
    "request_disk = 16384",
    "queue",
)


def how_to_explore(site: Site) -> list[str]:
    """Lines to paste: each was run as it stands here."""
    access, owner = site.machines["ap"], site.owners[campus.ALICE]
    larkctl = [*site.machines["ctl"].entry(), "env", f"PYTHONPATH={ENVIRONMENT['PYTHONPATH']}"]
    larkctl += [*site.larkctl.argv(), "attempts"]
    settings = (f"{key}={site.pool.environment[key]}" for key in ("PATH", "CONDOR_CONFIG"))
    as_owner = access.argv([], owner.name, site.pool.environment, owner.home)
    return [
        "The site stays up. Enter its machines, as root, with:",
        *(f"  {name:7} {shlex.join(machine.entry())} /bin/bash" for name, machine in site.machines.items()),
        "Ask the controller (also: attempt JOB, nodes, bridges, policy):",
        f"  {shlex.join(larkctl)}",
        f"Be {owner.name} on the access point, in a directory for submit files:",
        f"  {shlex.join(as_owner)} /bin/bash",
        f"Submit a job as {owner.name} from here:",
        f"  printf '%s\\n' {shlex.join(TRY_A_JOB)} | {shlex.join(as_owner)} condor_submit",
        "HTCondor's commands work on wn1 (the startd) and on ap (schedd and collector: condor_submit, condor_q).",
        f"  A root shell there needs: export {shlex.join(settings)}",
        f"Files and logs: {site.root}",
        "End it with: make demo ARGS=--clean",
    ]


def plan(engine: str, condor: str, chapters: Sequence[Chapter]) -> list[str]:
    """What would be made, for --dry-run."""
    drawing = (campus.__doc__ or "").split("```")[1].strip("\n")
    return [
        f"Would build, with the controller on {engine} and HTCondor {condor} from {campus.CACHE / f'condor-{condor}'}:",
        "",
        *drawing.splitlines(),
        "",
        f"as {len(campus.MACHINES)} sets of namespaces (network, mount, PID, UTS, IPC), with",
        f"users {campus.ALICE}, {campus.BOB} and condor in private copies of /etc, and one directory /tmp/{LABEL}-*.",
        "Nothing is written elsewhere. Would then tell:",
        *(f"  {number}. {chapter.title}" for number, chapter in enumerate(chapters, start=1)),
        "and take everything down and compare the machine with how it was.",
    ]


INTERRUPTIONS = (signal.SIGINT, signal.SIGTERM)


def _already(number: int, frame: FrameType | None) -> None:
    """The site is being taken down: an impatient second Ctrl-C must not stop that half-way.

    A function, not SIG_IGN: the commands of the clean-up would inherit that.
    """


def _interrupted(number: int, frame: FrameType | None) -> NoReturn:
    for each in INTERRUPTIONS:
        signal.signal(each, _already)
    raise KeyboardInterrupt


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.option(
    "--engine",
    type=click.Choice(["os-ken", "ryu"]),
    default="os-ken",
    show_default=True,
    help="Framework of the controller.",
)
@click.option(
    "--condor",
    type=click.Choice(["23", "25"]),
    default="23",
    show_default=True,
    help="Which HTCondor prefix the pool uses.",
)
@click.option(
    "--chapter", "slugs", multiple=True, type=click.Choice([c.slug for c in CHAPTERS]), help="Only this chapter."
)
@click.option("--keep", is_flag=True, help="Leave the site up afterwards, for exploring.")
@click.option("--clean", is_flag=True, help="Remove what --keep, a failed or a killed run left, and do nothing else.")
@click.option("--dry-run", is_flag=True, help="Print what would be made, and do nothing.")
def main(engine: str, condor: str, slugs: tuple[str, ...], keep: bool, clean: bool, dry_run: bool) -> None:
    """Lark's main story on a real HTCondor pool, a real Open vSwitch and a real file server, with evidence.

    Needs root. Everything runs in namespaces of its own and is removed at the end.
    """
    chapters = [chapter for chapter in CHAPTERS if not slugs or chapter.slug in slugs]
    if dry_run:
        print("\n".join(plan(engine, condor, chapters)))
        return
    if clean:
        removed = campus.sweep(LABEL, kept=True)
        print("\n".join(f"removed {path}" for path in removed) or "nothing to remove")
        return
    # Also SIGINT: started in the background by a script, Python would find it ignored.
    for number in INTERRUPTIONS:
        signal.signal(number, _interrupted)
    printer = Printer(Console(highlight=False))
    site = Site(engine=engine, condor=condor, label=LABEL, say=printer.step)
    try:
        sys.exit(play(site, chapters, printer, keep))
    except KeyboardInterrupt:
        printer.line("interrupted: taking the site down", "bold")
        site.abandon(keep_logs=False)
        # Python takes its own handlers away while it ends, but leaves what is ignored.
        for number in INTERRUPTIONS:
            signal.signal(number, signal.SIG_IGN)
        sys.exit(130)
    except SiteError as error:
        printer.line(f"failed: {error}", "bold red")
        sys.exit(1)


def play(site: Site, chapters: Sequence[Chapter], printer: Printer, keep: bool) -> int:
    """Build, tell, take down, judge. The exit status."""
    printer.heading("Building the site")
    site.start()
    for line in versions(site):
        printer.line(f"   {line}")
    missing = tell(site, chapters, printer)
    if keep:
        site.keep()
        printer.heading("Kept")
        for line in how_to_explore(site):
            printer.line(f"   {line}")
    else:
        printer.heading("Taking the site down, and looking for anything left")
        for check in site.stop():
            printer.check(check)
            missing += [f"left behind: {problem}" for problem in check.problems]
    took = printer.seconds()
    printer.line("")
    for problem in missing:
        printer.line(problem, "bold red")
    printer.line(f"{verdict(missing, took)}: {many(chapters, 'chapter')}, engine {site.engine}, {took:.0f} s.", "bold")
    return 1 if missing else 0


def many(things: Sequence[object], noun: str) -> str:
    return f"{len(things)} {noun}{'' if len(things) == 1 else 's'}"


def verdict(missing: Sequence[str], took: float) -> str:
    """The last word. Slowness is not a failed proof: the machine may have been busy."""
    if missing:
        return f"NOT PROVEN ({many(missing, 'problem')})"
    return "The story is proven" + (", but slower than three minutes" if took > LIMIT else "")


if __name__ == "__main__":
    main()
