"""What a site could leave behind on the machine that carries it, and whether it did.

Invariants: `Snapshot` only reads. The judgement is two-fold: whatever exists after and did not exist before is listed,
and it is a *leak* when it belongs to the site beyond doubt (a process in one of its namespaces, a name the site uses).
Other differences are reported but not judged: other people's programs run on the same machine at the same time.
"""

from __future__ import annotations

import os
import pwd
import re
import subprocess
import tempfile
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

OURS = re.compile(r"lark|^lj[0-9]+|^(wn1|gate)-br|^(wf|sf|cf|up|mg)0\b")
"""Names that the site and the daemons in it give to things."""
BY_OUR_USERS = re.compile(r" of uid (69\d|210\d\d)$|^(xrootd|hsperfdata_condor)\b")
"""Files in /tmp of the site's accounts (`users.JOB_UIDS`, `users.SYSTEM_UIDS`) and daemons."""
VOLATILE = re.compile(
    r"^(fs\.(dentry-state|file-nr|inode|quota|aio-nr|binfmt)|kernel\.(random|ns_last_pid|pty\.nr|perf|hung_task_detect)"
    r"|net\.netfilter\.nf_conntrack_count|net\.ipv4\.tcp_(mem|fastopen_key)|net\.ipv6\.route|vm\.stat|dev\.)"
)
PER_DEVICE = re.compile(r"^net\.(ipv4|ipv6|mpls)\.(conf|neigh)\.(?!all\.|default\.|lo\.)")


@dataclass(frozen=True, slots=True)
class Snapshot:
    """The machine's state, as sets of lines, by kind."""

    kinds: dict[str, frozenset[str]]

    @classmethod
    def take(cls) -> Snapshot:
        return cls(
            {
                "network namespace": _lines("ip", "netns", "list"),
                "link": frozenset(os.listdir("/sys/class/net")),
                "address": _addresses(),
                "route": _lines("ip", "route", "show", "table", "all"),
                "nftables": _lines("nft", "list", "ruleset"),
                "mount": frozenset(Path("/proc/self/mounts").read_text(encoding="utf-8").splitlines()),
                "account": frozenset(f"{entry.pw_name} ({entry.pw_uid})" for entry in pwd.getpwall()),
                "file in /tmp": _temporary(),
                "sysctl": _sysctls(),
            }
        )

    def counts(self) -> str:
        """How much there is of each kind, in one line for people."""
        return ", ".join(f"{kind} {len(lines)}" for kind, lines in self.kinds.items())


@dataclass(frozen=True, slots=True)
class Difference:
    kind: str
    change: str
    what: str
    leak: bool

    def __str__(self) -> str:
        return f"{self.kind} {self.change}: {self.what}"


def differences(before: Snapshot, after: Snapshot) -> list[Difference]:
    """Everything that appeared or went, leaks first."""
    found = []
    for kind, old in before.kinds.items():
        new = after.kinds[kind]
        for what in sorted(new - old):
            found.append(Difference(kind, "appeared", what, bool(OURS.search(what) or BY_OUR_USERS.search(what))))
        found += [Difference(kind, "went", what, False) for what in sorted(old - new)]
    return sorted(found, key=lambda difference: not difference.leak)


def processes_in(namespaces: Iterable[str], until: float | None = None) -> dict[int, str]:
    """Processes in any of these namespaces (names as in `readlink /proc/PID/ns/net`), zombies left out.

    With `until` (seconds since the machine's boot) only those that began before. The kernel gives a namespace's number
    to another as soon as it is free: a process that began after the namespaces' end is in somebody else's.
    """
    wanted = frozenset(namespaces)
    ticks = None if until is None else until * os.sysconf("SC_CLK_TCK")
    found = {}
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit():
            continue
        try:
            held = {os.readlink(entry / "ns" / kind) for kind in ("net", "pid", "mnt")}
            if held & wanted and (ticks is None or _start_time(entry) <= ticks):
                found[int(entry.name)] = (entry / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
        except OSError:
            continue  # it ended while we looked
    return found


def _start_time(process: Path) -> int:
    """In clock ticks since boot."""
    return int((process / "stat").read_text(encoding="utf-8", errors="replace").rpartition(")")[2].split()[19])


def _temporary() -> frozenset[str]:
    """Entries of /tmp with their owner. Run directories of sites and rigs (lark-NAME-12345678) are left out.

    Others may run beside this one; `sweep` and each one's own judge deal with them.
    """
    found = set()
    for entry in os.scandir(tempfile.gettempdir()):
        try:
            if not re.match(r"lark-[a-z-]+-\w{8}$", entry.name):
                found.add(f"{entry.name} of uid {entry.stat(follow_symlinks=False).st_uid}")
        except OSError:
            continue  # it went while we looked
    return frozenset(found)


def _lines(*argv: str) -> frozenset[str]:
    done = subprocess.run(argv, capture_output=True, text=True, check=False)
    return frozenset(line.strip() for line in done.stdout.splitlines() if line.strip())


def _addresses() -> frozenset[str]:
    # Lifetimes count down; what is left of the line is stable.
    return frozenset(re.sub(r"\s+(valid_lft|preferred_lft) \S+", "", line) for line in _lines("ip", "-o", "addr"))


def _sysctls() -> frozenset[str]:
    lines = _lines("sysctl", "-a", "--ignore")
    return frozenset(line for line in lines if not VOLATILE.match(line) and not PER_DEVICE.match(line))
