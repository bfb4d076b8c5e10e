"""Renders the two configuration files for HTCondor: `python -m condor_bridge.render execute|access`.

One file for an execution point, one for an access point; what differs between sites is an option here, everything else
stands in `condor_bridge/templates/` with its reasons. Invariants: every placeholder of a template is filled and every
value is used; a value that HTCondor would read as more than one line, a macro or a list is refused.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

import click

TEMPLATES = Path(__file__).parent / "templates"
DEFAULT_LIBEXEC = "/usr/libexec/lark"
DEFAULT_MAP = "/etc/condor/lark-groups.map"
JOB_ATTRIBUTES = (
    # Who: immutable, or set by the access point.
    "Owner",
    "User",
    "LarkGroup",
    "x509UserProxyVOName",
    "x509UserProxyFirstFQAN",
    "AuthTokenSubject",
    "AuthTokenIssuer",
    "AuthTokenGroups",
    # What the owner asks for.
    "AcctGroup",
    "LarkNetwork",
    "LarkSlice",
    "RequestNetworkMbps",
    "ConcurrencyLimits",
    "DAGManJobId",
    # Labels for people.
    "ClusterId",
    "ProcId",
    "GlobalJobId",
    "JobUniverse",
    # What START looks at: here so that an expression in its place is seen as one.
    "PreCmd",
    "PostCmd",
    "TransferPlugins",
    "WantDocker",
    "WantContainer",
)
"""Job attributes that the startd copies into the slot's ad, where the agent reads them."""


class RenderError(Exception):
    """A value cannot stand in HTCondor's configuration; the text says why."""


def _path(what: str, text: str) -> str:
    if not re.fullmatch(r"/[A-Za-z0-9._/+:@-]*", text):
        raise RenderError(f"{what} {text!r}: an absolute path of letters, digits and . _ - + : @ / is needed")
    return text.rstrip("/") or "/"


def _check_names(attributes: Sequence[str]) -> None:
    for name in attributes:
        if not re.fullmatch(r"[A-Za-z_][A-Za-z0-9_]*", name):
            raise RenderError(f"{name!r} is not the name of a job attribute")


def fill(template: str, values: Mapping[str, str]) -> str:
    """Replace each @NAME@ of the template. `@=end` and `@end` are HTCondor's own and stay."""
    used: set[str] = set()

    def value(found: re.Match[str]) -> str:
        used.add(found[1])
        try:
            return values[found[1]]
        except KeyError:
            raise RenderError(f"the template asks for @{found[1]}@, which nothing fills") from None

    text = re.sub(r"@([A-Z]+)@", value, template)
    if unused := set(values) - used:
        raise RenderError(f"the template has no place for {', '.join(sorted(unused))}")
    return text.rstrip("\n") + "\n"


def execute(
    libexec: str = DEFAULT_LIBEXEC,
    plugins: Sequence[str] = (),
    attributes: Sequence[str] = (),
    ping_seconds: int = 30,
    network_mbps: int | None = None,
) -> str:
    """Configuration of an execution point. `plugins`: real plugins that native_install wrapped (--plugin)."""
    _check_names(attributes)
    names = list(dict.fromkeys([*JOB_ATTRIBUTES, *attributes]))
    libexec = _path("--libexec", libexec)
    wrapped = [f"{libexec}/plugins/{Path(_path('--plugin', plugin)).name}" for plugin in plugins]
    resource = ""
    if network_mbps is not None:
        resource = (
            "\n# --- Bandwidth as a resource: request_NetworkMbps in a submit file takes its part of this. ---\n"
            f"MACHINE_RESOURCE_NetworkMbps = {network_mbps}\n"
        )
    return fill(
        (TEMPLATES / "50-lark-execute.config").read_text(),
        {
            "LIBEXEC": libexec,
            # (An empty list of plugins would not do: condor_starter 23.9.6 crashes on it, and the slot matches no job.)
            "PLUGINS": f"FILETRANSFER_PLUGINS = {', '.join(wrapped)}" if wrapped else "ENABLE_URL_TRANSFERS = False",
            "ATTRIBUTES": " ".join(names),
            "PING": str(ping_seconds),
            "RESOURCE": resource,
        },
    )


def access(
    map_file: str = DEFAULT_MAP, release_wait: int = 60, attributes: Sequence[str] = (), releases: int = 100
) -> str:
    """Configuration of an access point. `attributes`: what owners may say besides; only of Lark… others are refused."""
    _check_names(attributes)
    own = [a for a in dict.fromkeys(attributes) if re.match("lark.", a, re.IGNORECASE)]
    own = [a for a in own if a.lower() not in ("larkgroup", "larknetwork", "larkslice", "larkunknown", "larkoutside")]
    return fill(
        (TEMPLATES / "50-lark-access.config").read_text(),
        {
            "MAP": _path("--map", map_file),
            "WAIT": str(release_wait),
            "RELEASES": str(releases),
            "OWN": "".join(f"{name[len('Lark') :]}$|" for name in own),
            "SAYS": ", ".join(f"My.{name}" for name in ("LarkNetwork", *own)) + " and My.LarkSlice",
        },
    )


@click.group()
def main() -> None:
    """Print HTCondor configuration files for Lark."""


def _print(text: str) -> None:
    click.echo(text, nl=False)


@main.command("execute")
@click.option("--libexec", default=DEFAULT_LIBEXEC, show_default=True, help="Where native_install put the helper.")
@click.option("--plugin", "plugins", multiple=True, help="Real file-transfer plugin that native_install wrapped.")
@click.option("--attribute", "attributes", multiple=True, help="Further job attribute that your policy reads.")
@click.option("--ping", default=30, show_default=True, type=click.IntRange(1, 3600), help="Seconds between checks.")
@click.option("--network-mbps", type=click.IntRange(1), help="Offer this much bandwidth as a resource (Mbit/s).")
def execute_command(
    libexec: str, plugins: tuple[str, ...], attributes: tuple[str, ...], ping: int, network_mbps: int | None
) -> None:
    """The file for an execution point (50-lark-execute.config)."""
    try:
        _print(execute(libexec, plugins, attributes, ping, network_mbps))
    except RenderError as error:
        click.echo(f"render: {error}", err=True)
        sys.exit(1)


@main.command("access")
@click.option("--map", "map_file", default=DEFAULT_MAP, show_default=True, help="Map file from users to LarkGroup.")
@click.option("--release-wait", default=60, show_default=True, type=click.IntRange(1, 1800), help="First wait, s.")
@click.option(
    "--releases", default=100, show_default=True, type=click.IntRange(1, 10000), help="Holds of a job, at most."
)
@click.option("--attribute", "attributes", multiple=True, help="Further Lark… attribute that your policy declares.")
def access_command(map_file: str, release_wait: int, releases: int, attributes: tuple[str, ...]) -> None:
    """The file for an access point (50-lark-access.config)."""
    try:
        _print(access(map_file, release_wait, attributes, releases))
    except RenderError as error:
        click.echo(f"render: {error}", err=True)
        sys.exit(1)


if __name__ == "__main__":
    main()
