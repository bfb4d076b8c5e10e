"""`lark-lab`: the campus from the command line. Needs root and Debian's package `mininet`.

Invariants: whatever ends it (exit, an error, Ctrl-C, a signal), nothing of the campus stays; a failure is a sentence
and a non-zero exit code.
"""

from __future__ import annotations

import functools
import runpy
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any, NoReturn

import click
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from rich.console import Console
from rich.table import Table
from ruamel.yaml import YAML
from ruamel.yaml.error import YAMLError

from mininet_tests.site.namespaces import SiteError
from mininet_tests.topology import debian, layout
from mininet_tests.topology.lab import DEFAULT_POLICY, Campus
from mininet_tests.topology.prompt import LabPrompt, show
from policies.documents import PolicyError
from policies.language import load_policy
from policies.wire import Phase

FILE = click.Path(exists=True, dir_okay=False, path_type=Path)
POLICY = click.option(
    "--policy", type=FILE, default=DEFAULT_POLICY, show_default="the lab's own", help="The policy file."
)
SITE = click.option("--site", type=FILE, help="A site file for this campus; by default what `lark-lab site` prints.")
JOBS = click.option("--jobs", "jobs_file", type=FILE, help="Jobs to start: `jobs: {NAME: {node: wn1, ad: {…}}}`.")
ENGINE = click.option("--engine", type=click.Choice(["os-ken", "ryu"]), default="os-ken", show_default=True)


class _JobRow(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)
    node: str
    ad: dict[str, Any] = Field(default_factory=dict)
    phase: Annotated[Phase, Field(strict=False)] = Phase.RUN


class _JobsFile(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)
    jobs: dict[str, _JobRow]


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
def main() -> None:
    """A campus in Mininet: worker nodes with real agents, a gate with servers, a border, and the real controller."""


@main.command()
@POLICY
@SITE
@JOBS
@ENGINE
@click.option("--queues", is_flag=True, help="The line to the world has the rate of the site file, and its classes.")
@click.argument("script", type=FILE, required=False)
def campus(
    policy: Path, site: Path | None, jobs_file: Path | None, engine: str, queues: bool, script: Path | None
) -> None:
    """Bring the campus up; then run SCRIPT (Python, with `campus` in it), or give a prompt. Ends with it."""
    with _up(policy, site, jobs_file, engine, queues) as running:
        _print_addresses(running)
        if script is not None:
            runpy.run_path(str(script), init_globals={"campus": running}, run_name="__main__")
        else:
            LabPrompt(running).cmdloop()


@main.command()
@POLICY
@SITE
@JOBS
@ENGINE
@click.option("--port", "ports", multiple=True, help="For example tcp/1094; repeat it.  [default: those of services]")
def reach(policy: Path, site: Path | None, jobs_file: Path | None, engine: str, ports: tuple[str, ...]) -> None:
    """Who reaches whom, measured with real packets and as the policy means; exit status 1 if they differ."""
    with _up(policy, site, jobs_file, engine) as running:
        same = show(running, list(ports) or None)
    sys.exit(0 if same else 1)


@main.command()
@POLICY
@ENGINE
@click.option(
    "--out",
    type=click.Path(file_okay=False, path_type=Path),
    default=Path("lark-border"),
    show_default=True,
    help="The directory for border.png, border.svg, border.html and border.json.",
)
@click.option("--seconds", type=float, default=8.0, show_default=True, help="Of each of the six phases.")
def border(policy: Path, engine: str, out: Path, seconds: float) -> None:
    """Three classes of traffic share the line to the world: who gets what, drawn beside what each is entitled to.

    A job of production and one of others send with iperf3, a file server sends files to real xrdcps; they join and
    leave. It takes about two minutes. Exit status 1 if a class or the line lacks more than 5 %. Needs iperf3,
    xrootd-server, xrootd-client and, for the PNG, librsvg2-bin.
    """
    from mininet_tests.bench import border as experiment  # slow imports: not for --help
    from mininet_tests.bench import border_plot

    if seconds < experiment.LEAST_SECONDS:
        raise click.BadParameter(f"at least {experiment.LEAST_SECONDS:g}: the first of a phase are not judged")
    missing = experiment.missing_tools()
    if missing:
        raise click.ClickException(f"tools are missing: apt-get install {' '.join(missing)}")
    drawn = border_plot.can_png()
    if not drawn:
        click.echo("no border.png without rsvg-convert: apt-get install librsvg2-bin", err=True)
    with _ending():
        story = experiment.measure(seconds, policy, engine, say=functools.partial(click.echo, err=True))
    kinds = ("png", "svg", "html", "json") if drawn else ("svg", "html", "json")
    for file in experiment.write(story, {kind: out / f"border.{kind}" for kind in kinds}):
        click.echo(file)
    wrong = experiment.faults(story)
    for fault in wrong:
        click.echo(fault, err=True)
    sys.exit(1 if wrong else 0)


@main.command("site")
@POLICY
def site_command(policy: Path) -> None:
    """Print the campus as a site file for this policy."""
    try:
        click.echo(layout.site_text(load_policy(policy)), nl=False)
    except PolicyError as error:
        raise click.ClickException(str(error)) from None


@contextmanager
def _up(policy: Path, site: Path | None, jobs_file: Path | None, engine: str, queues: bool = False) -> Iterator[Campus]:
    jobs = _read_jobs(jobs_file)
    console = Console(stderr=True)

    def say(text: str) -> None:
        console.print(text, style="dim")

    with _ending(), Campus(policy, site, engine, say=say, queues=queues) as running:
        for name, row in jobs.items():
            job = running.begin_job(row.node, row.ad, name)
            if row.phase is not Phase.STAGE_IN:
                running.run_job(job)
            if row.phase is Phase.STAGE_OUT:
                running.stage_out(job)
        yield running


@contextmanager
def _ending() -> Iterator[None]:
    """Signals end what runs in here as an error would, and an error is a sentence."""

    def ended(number: int, _frame: object) -> NoReturn:
        sys.exit(128 + number)

    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, ended)
    # A shell's background command inherits SIGINT ignored, and then Python leaves it so.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        debian.check()
        yield
    except (SiteError, PolicyError, debian.MininetMissing) as error:
        raise click.ClickException(str(error)) from None
    except KeyboardInterrupt:
        raise click.ClickException("interrupted; nothing of the campus is left") from None


def _read_jobs(file: Path | None) -> dict[str, _JobRow]:
    if file is None:
        return {}
    try:
        return _JobsFile.model_validate(YAML(typ="safe").load(file.read_text(encoding="utf-8"))).jobs
    except YAMLError as error:
        raise click.ClickException(f"{file}: not valid YAML: {error}") from None
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(step) for step in first["loc"])
        raise click.ClickException(
            f"{file}: {where}: {first['msg']}; write it as `jobs: {{alice: {{node: wn1, ad: {{LarkGroup: physics}}}}}}`"
        ) from None


def _print_addresses(running: Campus) -> None:
    table = Table("machine", "IPv4", "IPv6")
    for end in running.ends():
        four = " ".join(str(a) for a in end.addresses if a.version == 4)
        table.add_row(end.name, four, " ".join(str(a) for a in end.addresses if a.version == 6))
    Console().print(table)


if __name__ == "__main__":
    main()
