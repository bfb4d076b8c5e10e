"""Builds and installs the native helper: `python -m condor_bridge.native_install --libexec DIR`.

What it leaves in LIBEXEC (docs/interfaces.md section 3), all root-owned and writable by nobody else:

    lark-job            0755, file capability cap_sys_admin+ep     lark-job-wrapper, lark-plugin -> it
    lark-hook           0755, the same program without capability  lark-hook-prepare, lark-ping -> it
                        (and lark-hook-exit, which configurations of an older Lark name)
    lark-socket         one line: the agent's socket
    lark-attach         one word: how jobs get into their networks (capability, userns, starter)
    plugins/NAME        -> ../lark-job: the wrapped file-transfer plugin
    plugins/NAME.real   one line: the path of the real plugin

`--attach userns` and `starter` are for machines on which file capabilities cannot be used: then neither program has
one, and both are linked statically, because a loader would obey the LD_PRELOAD of the job's owner.

Invariants: `lark-job` is never visible without its capability (it gets it under another name and is then renamed); an
installed file is replaced only when it differs; a place where others could exchange the helper, or where its
capability does nothing, is refused before anything is written. The last step proves, as an ordinary user, that the
capability works.
"""

from __future__ import annotations

import errno
import os
import pwd
import shutil
import stat
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path

import click

SOURCE = Path(__file__).parent / "native" / "lark_job.c"
DEFAULT_LIBEXEC = Path("/usr/libexec/lark")
DEFAULT_SOCKET = "/run/lark/agent.sock"
CAPABILITY = "cap_sys_admin=ep"
JOB_NAMES = ("lark-job-wrapper", "lark-plugin")
ATTACH = ("capability", "userns", "starter")
HOOK_NAMES = ("lark-hook-prepare", "lark-hook-exit", "lark-ping")
FLAGS = (
    "-std=c11",
    "-O2",
    "-Wall",
    "-Wextra",
    "-Werror",
    "-U_FORTIFY_SOURCE",
    "-D_FORTIFY_SOURCE=2",
    "-fstack-protector-strong",
    "-fPIE",
    "-Wl,-z,relro,-z,now,-z,noexecstack",
)


class InstallError(Exception):
    """The helper cannot be installed; the text says why and how to mend it."""


def build(
    output: Path, defines: Mapping[str, str] | None = None, source: Path = SOURCE, *, static: bool = False
) -> None:
    """Compile the helper. `defines` is for the tests' shortened time-outs; an installation has none."""
    compiler = shutil.which("cc") or shutil.which("gcc")
    if compiler is None:
        raise InstallError(
            "no C compiler: install gcc and the C library's headers (Debian: gcc libc6-dev; EL: gcc glibc-devel)"
        )
    words = [
        compiler,
        *FLAGS,
        "-static-pie" if static else "-pie",
        *(f"-D{name}={value}" for name, value in (defines or {}).items()),
    ]
    done = subprocess.run([*words, "-o", str(output), str(source)], capture_output=True, text=True)
    if done.returncode != 0:
        mend = "\nThe static C library may be missing (Debian: libc6-dev; EL: glibc-static)" if static else ""
        raise InstallError(f"{compiler} cannot compile {source}:\n{done.stderr.strip()}{mend}")


def check_place(libexec: Path, attach: str = "capability") -> None:
    """Refuse a directory in which somebody else could exchange the helper, or in which its capability does nothing."""
    if not libexec.is_absolute() or ".." in libexec.parts:
        raise InstallError(f"{libexec}: name the directory by a plain absolute path")
    for place in (libexec, *libexec.parents):
        try:
            status = place.lstat()
        except FileNotFoundError:
            continue
        if stat.S_ISLNK(status.st_mode):
            raise InstallError(f"{place} is a symbolic link; name the directory it leads to")
        if not stat.S_ISDIR(status.st_mode):
            raise InstallError(f"{place} is not a directory")
        if status.st_uid != 0:
            raise InstallError(f"{place} belongs to uid {status.st_uid}, who could exchange the helper: chown root it")
        # In a sticky directory such as /tmp others cannot rename root's entries, but they can add their own.
        open_to_all = status.st_mode & stat.S_IWOTH and (place == libexec or not status.st_mode & stat.S_ISVTX)
        if open_to_all:
            raise InstallError(f"{place} is writable by everybody, who could exchange the helper: chmod o-w it")
        if status.st_mode & stat.S_IWGRP and status.st_gid != 0 and not status.st_mode & stat.S_ISVTX:
            raise InstallError(
                f"{place} is writable by group {status.st_gid}, who could exchange the helper: chmod g-w it"
            )
        if not status.st_mode & stat.S_IXOTH:
            raise InstallError(f"{place} is closed to ordinary users, as whom jobs and hooks run: chmod o+x it")
    existing = next(place for place in (libexec, *libexec.parents) if place.exists())
    if attach == "capability" and os.statvfs(existing).f_flag & os.ST_NOSUID:
        raise InstallError(
            f"{existing} is on a file system mounted nosuid, where file capabilities do nothing; "
            "choose a --libexec on another file system"
        )
    if os.statvfs(existing).f_flag & os.ST_NOEXEC:
        raise InstallError(f"{existing} is on a file system mounted noexec; choose another --libexec")


def _say(text: str) -> None:
    click.echo(f"native-install: {text}")


def _getcap(path: Path) -> str:
    """The file capability in the words of getcap, for example `cap_sys_admin=ep`; empty if there is none."""
    try:
        os.getxattr(path, "security.capability")
    except OSError as e:
        if e.errno in (errno.ENODATA, errno.ENOTSUP):
            return ""
        raise
    return _tool("getcap", str(path)).removeprefix(str(path)).replace(" = ", "", 1).strip().removeprefix("= ")


def _tool(name: str, *arguments: str) -> str:
    program = shutil.which(name, path=f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin")
    if program is None:
        raise InstallError(f"{name} is missing: install it (Debian: libcap2-bin; EL: libcap)")
    done = subprocess.run([program, *arguments], capture_output=True, text=True)
    if done.returncode != 0:
        raise InstallError(f"{name} {' '.join(arguments)}: {(done.stderr or done.stdout).strip()}")
    return done.stdout.strip()


def _place_program(built: Path, target: Path, capability: str) -> None:
    """Install a program with exactly this file capability (may be empty), unless just this is there already."""
    try:
        status = target.lstat()
        same = (
            stat.S_ISREG(status.st_mode)
            and (status.st_uid, status.st_gid, stat.S_IMODE(status.st_mode)) == (0, 0, 0o755)
            and target.read_bytes() == built.read_bytes()
            and _getcap(target) == capability
        )
    except FileNotFoundError:
        same = False
    if same:
        _say(f"{target} is up to date")
        return
    fresh = target.with_name(f".{target.name}.{os.getpid()}")
    try:
        shutil.copyfile(built, fresh)
        os.chown(fresh, 0, 0)
        fresh.chmod(0o755)
        if capability:
            try:
                _tool("setcap", capability, str(fresh))
            except InstallError as error:
                raise InstallError(
                    f"file capabilities cannot be used in {target.parent}: {error}. Choose a --libexec on a local file "
                    "system with extended attributes (ext4, xfs); in a container setcap needs CAP_SETFCAP. Where none "
                    "of this is possible, docs/htcondor.md says what --attach userns and --attach starter mean"
                ) from None
        if _getcap(fresh) != capability:
            raise InstallError(f"setcap had no effect on {fresh}: getcap says {_getcap(fresh)!r}")
        fresh.rename(target)
    finally:
        fresh.unlink(missing_ok=True)
    _say(f"installed {target}{' with ' + capability if capability else ''}")


def _place_link(link: Path, target: str) -> None:
    if link.is_symlink() and os.readlink(link) == target:
        return
    fresh = link.with_name(f".{link.name}.{os.getpid()}")
    fresh.unlink(missing_ok=True)
    fresh.symlink_to(target)
    fresh.rename(link)


def _place_line(path: Path, line: str) -> None:
    fresh = path.with_name(f".{path.name}.{os.getpid()}")
    fresh.write_text(line + "\n")
    os.chown(fresh, 0, 0)
    fresh.chmod(0o644)
    fresh.rename(path)


def _root_directory(path: Path) -> None:
    path.mkdir(mode=0o755, parents=True, exist_ok=True)
    os.chown(path, 0, 0)
    path.chmod(0o755)


def prove(libexec: Path) -> None:
    """Run the installed helper as an ordinary user and let it say whether it will work here."""
    nobody = pwd.getpwnam("nobody")
    done = subprocess.run(
        [str(libexec / "lark-job"), "check"],
        user=nobody.pw_uid,
        group=nobody.pw_gid,
        extra_groups=[],
        capture_output=True,
        text=True,
        cwd="/",
    )
    if done.returncode != 0:
        raise InstallError(f"installed, but an ordinary user cannot use it: {(done.stderr or done.stdout).strip()}")


def install(
    libexec: Path,
    socket: str = DEFAULT_SOCKET,
    plugins: Sequence[Path] = (),
    defines: Mapping[str, str] | None = None,
    attach: str = "capability",
) -> None:
    """Put everything in place. Raises InstallError; may be repeated at any time, also while jobs run."""
    if os.geteuid() != 0:
        raise InstallError("must be run as root: the helper belongs to root and gets a file capability")
    if not socket.startswith("/") or len(socket) > 107 or "\n" in socket:
        raise InstallError(f"--socket {socket}: an absolute path of at most 107 bytes is needed")
    if attach not in ATTACH:
        raise InstallError(f"--attach {attach}: one of {', '.join(ATTACH)} is needed")
    if attach != "capability" and plugins:
        raise InstallError(
            f"--plugin cannot be used with --attach {attach}: there is no job network before the job starts, so files "
            "given by URL cannot be transferred on this node. Leave it out here and in condor_bridge.render execute"
        )
    for real in plugins:
        if not real.is_absolute() or not os.access(real, os.X_OK):
            raise InstallError(f"--plugin {real}: not an executable named by an absolute path")
    check_place(libexec, attach)
    _root_directory(libexec)
    check_place(libexec, attach)
    with tempfile.TemporaryDirectory(prefix="lark-native-") as scratch:
        built = Path(scratch) / "helper"
        build(built, defines, static=attach != "capability")
        _place_program(built, libexec / "lark-job", CAPABILITY if attach == "capability" else "")
        _place_program(built, libexec / "lark-hook", "")
    for name in JOB_NAMES:
        _place_link(libexec / name, "lark-job")
    for name in HOOK_NAMES:
        _place_link(libexec / name, "lark-hook")
    _place_line(libexec / "lark-socket", socket)
    _place_line(libexec / "lark-attach", attach)
    _root_directory(libexec / "plugins")
    for real in plugins:
        _place_line(libexec / "plugins" / f"{real.name}.real", str(real))
        _place_link(libexec / "plugins" / real.name, "../lark-job")
        _say(f"plugin {libexec / 'plugins' / real.name} wraps {real}")
    prove(libexec)
    how = "enter job networks" if attach == "capability" else f"get job networks attached ({attach})"
    _say(f"an ordinary user can {how} with {libexec / 'lark-job-wrapper'}; agent socket {socket}")


@click.command()
@click.option(
    "--libexec",
    type=click.Path(path_type=Path),
    default=DEFAULT_LIBEXEC,
    show_default=True,
    help="Where the helper goes: a directory of root on a file system that honours file capabilities.",
)
@click.option("--socket", default=DEFAULT_SOCKET, show_default=True, help="The agent's socket, as in agent.yaml.")
@click.option(
    "--plugin",
    "plugins",
    type=click.Path(path_type=Path),
    multiple=True,
    help="A file-transfer plugin to wrap (may be repeated), for example /usr/libexec/condor/curl_plugin.",
)
@click.option(
    "--attach",
    type=click.Choice(ATTACH),
    default="capability",
    show_default=True,
    help="How jobs get into their networks. Other than capability only where file capabilities cannot be used: userns "
    "(a user namespace; slot users only, see docs/htcondor.md), starter (HTCondor 25's NO_JOB_NETWORKING).",
)
def main(libexec: Path, socket: str, plugins: tuple[Path, ...], attach: str) -> None:
    """Build and install Lark's hooks, job wrapper and plugin wrapper. Needs root and a C compiler; may be repeated."""
    try:
        install(libexec, socket, plugins, attach=attach)
    except (InstallError, OSError) as error:
        click.echo(f"native-install: {error}", err=True)
        sys.exit(1)


if __name__ == "__main__":
    main()
