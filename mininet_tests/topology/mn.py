"""Mininet's own command `mn`, in namespaces of its own and with Lark's interpreter. See `campus.py`.

`ensure_inside` is called by the system's Python (standard library only on this way); `main` is what it starts instead.
Invariant: the machine's own Open vSwitch, links and limits are out of reach of everything that `mn` does.
"""

from __future__ import annotations

import hashlib
import os
import runpy
import sys
import tempfile
from pathlib import Path
from typing import NoReturn

from mininet_tests.site.namespaces import SYSTEM_PATH
from mininet_tests.site.users import private_etc

REPOSITORY = Path(__file__).resolve().parents[2]
LAB = "LARK_LAB"
"""Environment: the lab's directory; set inside the namespaces only."""
LOCKS = ("requirements-build.lock", "requirements.lock", "scripts/make-venv")
MN = Path("/usr/bin/mn")


def ensure_inside() -> None:
    """Return inside the lab's namespaces; outside, start `mn` again in there, with the same arguments."""
    if LAB not in os.environ:
        _enter(sys.argv[1:])


def _enter(arguments: list[str]) -> NoReturn:
    if os.geteuid() != 0:
        sys.exit("the lab needs root (namespaces, Open vSwitch): run mn with sudo")
    python = interpreter()
    root = Path(tempfile.mkdtemp(prefix="lark-mn-"))
    root.chmod(0o755)
    (root / "home").mkdir()
    private_etc(root / "etc", [], [])
    environment = {
        "PATH": f"{Path(python).parent}:{SYSTEM_PATH}",
        "PYTHONPATH": str(REPOSITORY),
        "PYTHONDONTWRITEBYTECODE": "1",
        "HOME": "/root",
        "LANG": "C.UTF-8",
        LAB: str(root),
    }
    environment |= {key: os.environ[key] for key in ("TERM", "COLUMNS", "LINES") if key in os.environ}
    command = ["unshare", "--net", "--mount", "--pid", "--uts", "--ipc", "--fork", "--kill-child", "--"]
    command += [python, "-P", "-m", "mininet_tests.topology.house", str(root)]
    os.execvpe("unshare", [*command, python, "-P", "-m", "mininet_tests.topology.mn", *arguments], environment)


def interpreter() -> str:
    """Lark's interpreter: ours if it is one, else $LARK_PYTHON, else the environment that the Makefile makes."""
    if sys.prefix != sys.base_prefix:
        return sys.executable
    named = os.environ.get("LARK_PYTHON")
    if named:
        return named
    digest = hashlib.sha256(b"".join((REPOSITORY / name).read_bytes() for name in LOCKS)).hexdigest()[:12]
    caches = [os.environ.get("LARK_CACHE", "/var/cache/htlark"), str(Path.home() / ".cache/htlark")]
    for cache in caches:
        found = Path(cache) / f"venv-{digest}" / "bin" / "python"
        if found.exists():
            return str(found)
    sys.exit(
        f"no Python environment of this checkout in {' or '.join(caches)}: run `make install-deps`, "
        "or name an interpreter that has Lark's packages in LARK_PYTHON"
    )


def main() -> None:
    from mininet_tests.topology import debian

    debian.provide()
    import mininet.clean

    # After a failure it kills by name and empties /tmp of logs. Here everything ends with the namespaces.
    mininet.clean.cleanup = lambda: None
    arguments = sys.argv[1:]
    if not any(one.startswith("--controller") for one in arguments):
        arguments += ["--controller", "none"]  # the campus brings its own
    sys.argv = ["mn", *arguments]
    runpy.run_path(str(MN), run_name="__main__")


if __name__ == "__main__":
    main()
