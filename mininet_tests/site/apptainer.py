"""Apptainer without set-uid, in a prefix, for tests: `python -m mininet_tests.site.apptainer` prints where it is.

Debian 12 has none; the suite in development has. It is taken as HTCondor is (`condor_bridge.prefix`): the package and
the libraries of its closure are unpacked beside the system and told to use each other. The image is a directory with
BusyBox in it, so no network and no image format is needed.

Invariants: as for HTCondor's prefix; a prefix that does not run its image is an error here, not in a test.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from condor_bridge.prefix import (
    BUILDING,
    PrefixError,
    PrivateApt,
    check_traversable,
    exclusive,
    machine_mirror,
    patchelf_program,
    wanted,
)

CACHE = Path(os.environ.get("LARK_CACHE", "/var/cache/htlark"))
SUITE = "sid"
PREFIX = CACHE / "apptainer"
PROGRAM = PREFIX / "usr/bin/apptainer"
IMAGE = PREFIX / "image"
STAMP = PREFIX / ".complete"
BUSYBOX = Path("/bin/busybox")
COMMANDS = ("sh", "cat", "id", "ls", "nc", "readlink", "sleep", "wget")
NOBODY = 65534


def install() -> Path:
    """Make the prefix and the image unless they are complete; the program. Raises PrefixError."""
    with exclusive(PREFIX):
        if STAMP.exists():
            return PROGRAM
        if not BUSYBOX.exists():
            raise PrefixError(f"{BUSYBOX} is missing; `apt-get install busybox-static`")
        if PREFIX.exists() and not (PREFIX / BUILDING).exists():
            raise PrefixError(f"{PREFIX} was not made by this program; move it away")
        shutil.rmtree(PREFIX, ignore_errors=True)
        (PREFIX / "usr/lib").mkdir(mode=0o755, parents=True)
        (PREFIX / BUILDING).touch()
        check_traversable(PREFIX)
        _unpack()
        _relink()
        _make_image()
        _prove()
        (PREFIX / BUILDING).unlink()
        STAMP.touch()
        return PROGRAM


def _unpack() -> None:
    for name in ("lib", "lib64"):
        (PREFIX / "usr" / name).mkdir(exist_ok=True)
        (PREFIX / name).symlink_to(f"usr/{name}")
    with tempfile.TemporaryDirectory(prefix="lark-apt-", dir=CACHE) as scratch:
        root = Path(scratch)
        root.chmod(0o755)
        apt = PrivateApt(root, machine_mirror(), SUITE)
        apt.update()
        packages = [one for one in apt.closure("apptainer") if one.name == "apptainer" or wanted(one.name)]
        if not any(one.name == "apptainer" for one in packages):
            raise PrefixError(f"the suite {SUITE} of {machine_mirror()} has no apptainer")
        for archive in apt.download(packages, root / "debs"):
            subprocess.run(["dpkg-deb", "--extract", archive, PREFIX], check=True)
    PREFIX.chmod(0o755)
    # A relocated Apptainer looks for these beside the directory of its libraries.
    for name in ("etc", "var"):
        (PREFIX / "usr" / name).symlink_to(f"../{name}")
        (PREFIX / "usr/lib" / name).symlink_to(f"../../{name}")
    (PREFIX / "var/lib/apptainer/mnt/session").mkdir(parents=True, exist_ok=True)


def _relink() -> None:
    loader = next((PREFIX / "usr/lib").glob("*-linux-gnu*/ld-linux*.so.*"), None)
    starter = next((PREFIX / "usr/lib").rglob("apptainer/bin/starter"), None)
    if loader is None or starter is None:
        raise PrefixError(f"{PREFIX}: Apptainer's package was not unpacked as expected")
    for program in (PROGRAM, starter):
        words = [patchelf_program(), "--set-interpreter", loader, "--force-rpath", "--set-rpath", loader.parent]
        subprocess.run([str(word) for word in (*words, program)], check=True)


def _make_image() -> None:
    # What Apptainer mounts over must be there; a directory without a file would not survive a transfer.
    for name in ("dev", "etc", "home", "proc", "root", "srv", "sys", "tmp", "var/tmp"):
        (IMAGE / name).mkdir(parents=True)
        (IMAGE / name / ".keep").touch()
    for name in ("tmp", "var/tmp"):
        (IMAGE / name).chmod(0o1777)
    (IMAGE / "etc/passwd").write_text("root:x:0:0:root:/root:/bin/sh\n", encoding="ascii")
    (IMAGE / "etc/group").write_text("root:x:0:\n", encoding="ascii")
    for name in ("hosts", "resolv.conf"):
        (IMAGE / "etc" / name).touch()
    (IMAGE / "bin").mkdir()
    shutil.copy(BUSYBOX, IMAGE / "bin/busybox")
    for name in COMMANDS:
        (IMAGE / "bin" / name).symlink_to("busybox")


def _prove() -> None:
    """An ordinary user runs something in the image."""
    words = [str(PROGRAM), "exec", str(IMAGE), "/bin/id", "-u"]
    done = subprocess.run(
        words, user=NOBODY, group=NOBODY, extra_groups=[], cwd="/", env={"HOME": "/tmp"}, capture_output=True, text=True
    )
    if done.stdout.strip() != str(NOBODY):
        raise PrefixError(f"{' '.join(words)} as an ordinary user: {(done.stdout + done.stderr).strip()[-500:]}")


if __name__ == "__main__":
    try:
        print(install())
    except (PrefixError, OSError, subprocess.CalledProcessError) as error:
        sys.exit(f"apptainer: {error}")
