"""Lark's commands, each in a process of its own that shares what the tests have imported already.

A fork costs a hundredth of an interpreter that starts: only what a command does is its own, with its arguments, its
output, its exit code. That it can also start alone is shown where a test starts `python -m`.
"""

from __future__ import annotations

import importlib
import logging
import os
import signal
import subprocess
import sys
import tempfile
import traceback
from typing import NoReturn

SECONDS = 60


def run(module: str, *argv: str, env: dict[str, str] | None = None) -> subprocess.CompletedProcess[str]:
    """What `main()` of the module does with these arguments. `env`: set besides what the tests have."""
    importlib.import_module(module)
    with tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as err:
        pid = os.fork()
        if pid == 0:
            _become(module, argv, env or {}, out.fileno(), err.fileno())
        code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
        told = []
        for file in (out, err):
            file.seek(0)
            told.append(file.read().decode())
    return subprocess.CompletedProcess([module, *argv], code, *told)


def _become(module: str, argv: tuple[str, ...], env: dict[str, str], out: int, err: int) -> NoReturn:
    code = 70
    try:
        signal.signal(signal.SIGALRM, signal.SIG_DFL)
        signal.alarm(SECONDS)
        null = os.open(os.devnull, os.O_RDONLY)
        for source, target in ((null, 0), (out, 1), (err, 2)):
            os.dup2(source, target)
        sys.stdin = open(0, closefd=False)  # noqa: SIM115  # for the life of the process
        sys.stdout = open(1, "w", closefd=False)  # noqa: SIM115
        sys.stderr = open(2, "w", buffering=1, closefd=False)  # noqa: SIM115
        logging.getLogger().handlers.clear()  # those of the tests
        os.environ.update(env)
        sys.argv = [module, *argv]
        try:
            importlib.import_module(module).main()
            code = 0
        except SystemExit as done:
            code = done.code if isinstance(done.code, int) else int(done.code is not None)
            if isinstance(done.code, str):
                print(done.code, file=sys.stderr)
        except BaseException:  # noqa: BLE001  # whatever it is, an interpreter would show it and end with 1
            traceback.print_exc()
            code = 1
        sys.stdout.flush()
        sys.stderr.flush()
    finally:
        os._exit(code)
