"""Makes Debian's Mininet importable, and nothing else of Debian's Python packages.

Mininet is no package of our environment: the one on PyPI is an older test version without `mnexec`, the program that
makes its namespaces. Debian's lies where only the system's interpreter looks; putting that directory on the path would
let any package there take the place of one that our lock files name. So one finder hands out `mininet`, and only that.
"""

from __future__ import annotations

import importlib.abc
import importlib.machinery
import importlib.util
import shutil
import sys
import warnings
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType

PACKAGES = Path("/usr/lib/python3/dist-packages")
NAME = "mininet"


class MininetMissing(Exception):
    """Mininet is not installed here; the text says how to mend that."""


class _Finder(importlib.abc.MetaPathFinder):
    def find_spec(
        self, name: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> importlib.machinery.ModuleSpec | None:
        if name != NAME:
            return None
        package = PACKAGES / NAME
        return importlib.util.spec_from_file_location(
            name, package / "__init__.py", submodule_search_locations=[str(package)]
        )


def check() -> None:
    """Raises MininetMissing."""
    if not (PACKAGES / NAME / "__init__.py").exists() or shutil.which("mnexec") is None:
        raise MininetMissing("Mininet is not installed: `make install-deps`, or `apt-get install mininet`")


def provide() -> None:
    """After this `import mininet` works. Raises MininetMissing."""
    check()
    if not any(isinstance(finder, _Finder) for finder in sys.meta_path):
        # Last: whoever has a mininet of his own in the environment keeps it.
        sys.meta_path.append(_Finder())
        # Its use of distutils and of escapes in strings is its own affair.
        warnings.filterwarnings("ignore", module=r"mininet\.", category=DeprecationWarning)
        warnings.filterwarnings("ignore", message="The distutils package is deprecated", category=DeprecationWarning)
