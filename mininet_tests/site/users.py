"""People and accounts of the site: a private /etc for each machine.

Invariants: the carrying machine's /etc is read, never written. The site's users exist only in the machines' own copies,
so there is nothing to remove afterwards, and a crash cannot leave an account behind. Numeric ids are chosen so that no
account of the carrying machine has them. What not everybody may read in /etc (keys, password hashes) is not copied.
"""

from __future__ import annotations

import grp
import os
import pwd
import shutil
import stat
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

JOB_UIDS = range(21000, 21100)
"""Uids of the site's job owners; the agent's guard covers this range."""
SYSTEM_UIDS = range(690, 700)


@dataclass(frozen=True, slots=True)
class Account:
    """A line of the machines' /etc/passwd (and /etc/group: each account has a group of its own)."""

    name: str
    uid: int
    home: Path
    shell: str = "/bin/sh"


def choose_uids(names: Sequence[str], among: range) -> dict[str, int]:
    """A free uid (also free as gid) for each name, the same ones on every run of an unchanged machine."""
    taken = {entry.pw_uid for entry in pwd.getpwall()} | {entry.gr_gid for entry in grp.getgrall()}
    free = (uid for uid in among if uid not in taken)
    return {name: next(free) for name in names}


def private_etc(target: Path, accounts: Sequence[Account], hosts: Sequence[tuple[str, str]]) -> None:
    """Make a copy of /etc with these accounts and host names. Existing accounts of the same names are replaced."""
    shutil.copytree("/etc", target, symlinks=True, ignore=_not_for_everybody)
    names = {account.name for account in accounts}
    for file, line in (("passwd", _passwd), ("group", _group), ("shadow", _shadow), ("gshadow", _gshadow)):
        path = target / file
        old = path.read_text(encoding="utf-8").splitlines() if path.exists() else []
        kept = [text for text in old if text.split(":", 1)[0] not in names]
        mode = path.stat().st_mode & 0o777 if path.exists() else 0o600
        path.write_text("\n".join([*kept, *(line(account) for account in accounts)]) + "\n", encoding="utf-8")
        path.chmod(mode)
    lines = ["127.0.0.1 localhost", *(f"{address} {name}" for address, name in hosts)]
    (target / "hosts").write_text("\n".join(lines) + "\n", encoding="utf-8")
    # Names come from the file alone: the site has no DNS server, and a waiting resolver would only slow the story down.
    (target / "nsswitch.conf").write_text(
        "passwd: files\ngroup: files\nshadow: files\nhosts: files\n", encoding="utf-8"
    )


def _not_for_everybody(directory: str, names: list[str]) -> set[str]:
    """What is left out of the copy: secrets, sockets, devices."""
    left_out = set()
    for name in names:
        mode = os.lstat(os.path.join(directory, name)).st_mode
        readable = (stat.S_ISREG(mode) and mode & stat.S_IROTH) or (stat.S_ISDIR(mode) and mode & stat.S_IXOTH)
        if not readable and not stat.S_ISLNK(mode):
            left_out.add(name)
    return left_out


def _passwd(account: Account) -> str:
    return f"{account.name}:x:{account.uid}:{account.uid}:user of the Lark demo site:{account.home}:{account.shell}"


def _group(account: Account) -> str:
    return f"{account.name}:x:{account.uid}:"


def _shadow(account: Account) -> str:
    return f"{account.name}:!:19000:0:99999:7:::"


def _gshadow(account: Account) -> str:
    return f"{account.name}:!::"
