"""PID 1 of a simulated machine. Standard library only; run as a script by `namespaces.Machine`.

Purpose: prepare the machine's own mounts (`/run`, `/etc`, `/home`, `/sys`, `/proc`), name it, reap orphans as an init
must (daemons that wait for a pid to vanish would be fooled by zombies), and end with its owner.

Invariants: the owner holds the other end of standard input. End of file there means that the owner is gone, however it
died: init exits, and the kernel then kills every process of the machine and frees its namespaces and mounts. Only the
line `keep` from the owner detaches the machine from it. Nothing is ever mounted outside the machine's mount namespace.
"""

from __future__ import annotations

import argparse
import os
import select
import signal
import subprocess
import sys


def run(*argv: str) -> None:
    done = subprocess.run(argv, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        sys.exit(f"machine set-up: {' '.join(argv)}: exit {done.returncode}: {done.stderr.strip()}")


def prepare(hostname: str, etc: str, home: str) -> None:
    """The machine's own view of the file system. The tmpfs on /run is mounted without nosuid on purpose: the helper
    with its file capability is installed there, and some distributions mount /tmp nosuid."""
    run("mount", "--make-rprivate", "/")
    run("mount", "-t", "proc", "proc", "/proc")
    run("mount", "-t", "sysfs", "sysfs", "/sys")
    run("mount", "-t", "tmpfs", "-o", "mode=755", "lark-site-run", "/run")
    run("mount", "--bind", etc, "/etc")
    run("mount", "--bind", home, "/home")
    os.makedirs("/run/netns", mode=0o755)
    run("hostname", hostname)
    run("ip", "link", "set", "lo", "up")
    # Duplicate address detection would make every IPv6 address wait a second before it can be used.
    for which in ("all", "default"):
        with open(f"/proc/sys/net/ipv6/conf/{which}/accept_dad", "w", encoding="ascii") as knob:
            knob.write("0")


def reap() -> None:
    while True:
        try:
            pid, _ = os.waitpid(-1, os.WNOHANG)
        except ChildProcessError:
            return
        if pid == 0:
            return


def serve() -> None:
    """Wait for the owner's end; reap in between."""
    watched = True
    wake_read, wake_write = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
    signal.set_wakeup_fd(wake_write, warn_on_full_buffer=False)
    signal.signal(signal.SIGCHLD, lambda *_: None)
    while True:
        sources = [wake_read, 0] if watched else [wake_read]
        ready, _, _ = select.select(sources, [], [])
        if wake_read in ready:
            os.read(wake_read, 4096)
            reap()
        if 0 in ready:
            said = os.read(0, 4096)
            if not said:
                return
            if said.strip() == b"keep":
                watched = False


def main() -> None:
    parser = argparse.ArgumentParser(description="PID 1 of a simulated machine of the Lark site builder")
    parser.add_argument("--hostname", required=True)
    parser.add_argument("--etc", required=True, help="directory that becomes /etc of this machine")
    parser.add_argument("--home", required=True, help="directory that becomes /home of this machine")
    args = parser.parse_args()
    if os.getpid() != 1:
        sys.exit("this is the PID 1 of a simulated machine; `mininet_tests.site.namespaces` starts it")
    prepare(args.hostname, args.etc, args.home)
    print("ready", flush=True)
    serve()


if __name__ == "__main__":
    main()
