"""PID 1 of the namespaces that `mn` runs in: prepares their mounts, runs one command, reaps, and takes all with it.

Unlike the site builder's init it leaves standard input to the command: `mn` has a prompt. Invariant: when the command
ends, so does every process here, and the lab's directory goes.
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys

from mininet_tests.site.init import prepare


def main() -> None:
    root, *command = sys.argv[1:]
    if os.getpid() != 1:
        sys.exit("this is the first process of a lab; `mininet_tests.topology.mn` starts it")
    prepare("lab", os.path.join(root, "etc"), os.path.join(root, "home"))
    child = subprocess.Popen(command)
    # Ctrl-C is for the command; who ends this process means the command as well.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, lambda got, _: child.send_signal(got))
    while True:
        try:
            pid, status = os.wait()
        except ChildProcessError:
            break
        if pid == child.pid:
            shutil.rmtree(root, ignore_errors=True)
            sys.exit(os.waitstatus_to_exitcode(status) & 0xFF)


if __name__ == "__main__":
    main()
