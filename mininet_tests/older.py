"""An older version of the project to run beside the present one.

It is the project's own, as it was one protocol or many commits ago. Where the checkout has no history (a release, a
shallow clone), the present version takes its place, and the output says so.
"""

from __future__ import annotations

import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from mininet_tests.site.lark import REPOSITORY

OLDER = "009d64e611a4d1e496d10bbfad52d9c611904448"
"""The last commit whose messages had no `Lark-Protocol` header."""


@contextmanager
def older_version() -> Iterator[Path]:
    """A directory with the older version; it goes with the block."""
    with tempfile.TemporaryDirectory(prefix="lkag-older-") as name:
        archive = Path(name) / "older.tar"
        git = ["git", "-c", f"safe.directory={REPOSITORY}", "-C", str(REPOSITORY), "archive", "-o", str(archive), OLDER]
        if subprocess.run(git, capture_output=True, check=False).returncode == 0:
            subprocess.run(["tar", "-xf", str(archive), "-C", name], check=True)
            print(f"older version: {OLDER}")
            yield Path(name)
        else:
            print("older version: the present one (this checkout has no history)")
            yield REPOSITORY
