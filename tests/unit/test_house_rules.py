"""The rules of the house, as tests: arrows between packages, purity, words, documents that tell the truth.

Each import contract is also broken on purpose, in a copy, to show that the contract would notice.
"""

from __future__ import annotations

import ast
import importlib.metadata
import importlib.util
import re
import shlex
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import get_args

import pytest
from pydantic import BaseModel

from ovs_agent.config import AgentConfig
from ryu_apps.config import ControllerFile
from tests.commands import run

ROOT = Path(__file__).resolve().parents[2]
PACKAGES = ("policies", "ryu_apps", "condor_bridge", "ovs_agent", "mininet_tests")
PYPROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
LANGUAGE = "policies/language.py"
"""The loader: the one place of the pure core that reads files."""
SPEAKERS = ("ryu_apps/openflow/encode.py", "ryu_apps/openflow/decode.py")


def modules(*packages: str) -> Iterator[Path]:
    for package in packages:
        yield from sorted((ROOT / package).rglob("*.py"))


@cache
def parsed(path: Path) -> ast.Module:
    return ast.parse(path.read_text(), filename=str(path))


def pure_modules() -> list[Path]:
    paths = [*modules("policies", "ryu_apps/openflow", "ryu_apps/reconcile"), ROOT / "ovs_agent/plan.py"]
    outside = {ROOT / name for name in (LANGUAGE, *SPEAKERS)}
    return [path for path in paths if path not in outside]


# --- arrows ---


def lint_imports(tree: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    program = Path(sys.executable).with_name("lint-imports")
    return subprocess.run(
        [program, "--no-logo", "--no-cache", "--config", str(tree / "pyproject.toml"), *arguments],
        cwd=tree,
        env={"PYTHONPATH": str(tree), "PATH": "/usr/bin:/bin"},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


@pytest.fixture(scope="module")
def copy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the packages, whose modules a test may spoil."""
    tree = tmp_path_factory.mktemp("house")
    shutil.copy(ROOT / "pyproject.toml", tree)
    for package in PACKAGES:
        shutil.copytree(ROOT / package, tree / package, ignore=shutil.ignore_patterns("__pycache__"))
    return tree


def test_the_arrows_hold(copy: Path) -> None:
    done = lint_imports(copy)
    assert done.returncode == 0, done.stdout + done.stderr
    contracts = len(PYPROJECT["tool"]["importlinter"]["contracts"])
    assert f"{contracts} kept, 0 broken" in done.stdout


@pytest.mark.parametrize(
    ("contract", "module", "line"),
    [
        ("policies-alone", "policies/wire.py", "import ryu_apps.openflow.flows"),
        ("three-rooms", "ovs_agent/plan.py", "import ryu_apps.openflow.cookies"),
        ("three-rooms", "ryu_apps/store/store.py", "import ovs_agent.plan"),
        ("no-tests-in-production", "ryu_apps/store/store.py", "import mininet_tests"),
        ("one-engine", "ryu_apps/store/store.py", "import eventlet"),
        ("one-engine", "ryu_apps/openflow/encode.py", "from os_ken.ofproto import ofproto_v1_4"),
        ("one-engine", "ovs_agent/plan.py", "def late() -> None:\n    import ryu"),
        ("pyroute2-in-the-agent", "ryu_apps/store/store.py", "import pyroute2"),
        ("nothing-blocks-the-hub", "ryu_apps/store/store.py", "import htcondor2"),
        ("pure-core", "policies/model.py", "import time"),
        ("pure-core", "policies/wire.py", "from os import environ"),
        ("pure-core", "ryu_apps/openflow/flows.py", "import logging"),
        ("pure-core", "ryu_apps/openflow/registers.py", "import ryu_apps.store.ovsdb"),
        ("pure-core", "ovs_agent/plan.py", "import random"),
    ],
)
def test_a_broken_arrow_is_noticed(copy: Path, contract: str, module: str, line: str) -> None:
    path = copy / module
    sound = path.read_text()
    try:
        path.write_text(f"{sound}\n{line}\n")
        done = lint_imports(copy, "--contract", contract)
    finally:
        path.write_text(sound)
    assert done.returncode == 1, f"{line!r} in {module} went unnoticed by {contract}:\n{done.stdout}{done.stderr}"
    assert "1 broken" in done.stdout


def test_only_the_engine_imports_by_name() -> None:
    """An import contract cannot see `import_module("os_ken")`."""
    by_name = {
        str(path.relative_to(ROOT))
        for path in modules(*PACKAGES)
        for node in ast.walk(parsed(path))
        if (isinstance(node, ast.Attribute) and node.attr == "import_module")
        or (isinstance(node, ast.Name) and node.id in {"import_module", "__import__"})
    }
    assert by_name == {"ryu_apps/engine.py"}


# --- the pure core ---

IMPURE_CALLS = {"open", "print", "input", "exec", "eval", "globals", "__import__"}
IMPURE_METHODS = {"now", "utcnow", "today", "read_text", "write_text", "read_bytes", "write_bytes"}


def impurities(tree: ast.Module) -> list[str]:
    found = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Global):
            found.append(f"line {node.lineno}: global {', '.join(node.names)}")
        if isinstance(node, ast.Call):
            match node.func:
                case ast.Name(id=name) if name in IMPURE_CALLS:
                    found.append(f"line {node.lineno}: {name}()")
                case ast.Attribute(attr=name) if name in IMPURE_METHODS:
                    found.append(f"line {node.lineno}: .{name}()")
    return sorted(found)


@pytest.mark.parametrize("path", pure_modules(), ids=lambda path: str(path.relative_to(ROOT)))
def test_pure_modules_touch_nothing(path: Path) -> None:
    assert impurities(parsed(path)) == []


def test_an_impurity_is_noticed() -> None:
    sample = "import datetime\nX = 0\ndef f():\n    global X\n    X = open('a').read() + str(datetime.datetime.now())\n"
    assert impurities(ast.parse(sample)) == ["line 4: global X", "line 5: .now()", "line 5: open()"]


# --- words ---


@pytest.mark.parametrize("path", list(modules(*PACKAGES)), ids=lambda path: str(path.relative_to(ROOT)))
def test_every_module_says_its_purpose(path: Path) -> None:
    tree = parsed(path)
    if path.name == "__init__.py" and not tree.body:
        return  # only makes the directory a package
    docstring = ast.get_docstring(tree) or ""
    assert len(docstring) >= 20, "a module docstring says purpose and invariants in field terms"
    assert path.stem not in {"utils", "util", "helpers", "common", "misc"}, "name a module after what it is about"


def test_no_test_skips() -> None:
    """A missing tool is a failure with a clear text, never a skip."""
    skips = [
        f"{path.relative_to(ROOT)}:{node.lineno}"
        for path in [*modules("tests"), *modules("mininet_tests")]
        for node in ast.walk(parsed(path))
        if isinstance(node, ast.Attribute) and node.attr in {"skip", "skipif", "importorskip"}
    ]
    assert skips == []


def test_the_policies_package_is_ours() -> None:
    """A dead package on PyPI has the same import name."""
    import policies

    assert Path(policies.__file__ or "").parent == ROOT / "policies"
    foreign = [name for name in importlib.metadata.packages_distributions().get("policies", []) if name != "htlark"]
    assert foreign == []


# --- packaging ---


def distribution(requirement: str) -> str:
    return re.split(r"[<>=!~\[; ]", requirement, maxsplit=1)[0].lower().replace("_", "-")


def test_every_dependency_earns_its_place_in_the_documents() -> None:
    project = PYPROJECT["project"]
    wanted = {distribution(line) for line in project["dependencies"]}
    for extra in project["optional-dependencies"].values():
        wanted |= {distribution(line) for line in extra}
    told = set(re.findall(r"^\| `([a-z0-9.-]+)` \|", (ROOT / "docs/dependencies.md").read_text(), flags=re.MULTILINE))
    python_part = {name for name in told if not name.endswith("-deb")}
    assert wanted - python_part == set(), "docs/dependencies.md does not say why these are needed"


def test_every_dependency_is_used() -> None:
    imported = {
        name.split(".")[0]
        for path in modules(*PACKAGES)
        for node in ast.walk(parsed(path))
        for name in (
            [alias.name for alias in node.names]
            if isinstance(node, ast.Import)
            else [node.module or ""]
            if isinstance(node, ast.ImportFrom)
            else [node.args[0].value]  # importlib.import_module("os_ken…"), as the engine does it
            if isinstance(node, ast.Call)
            and node.args
            and isinstance(node.args[0], ast.Constant)
            and isinstance(node.args[0].value, str)
            and "import_module" in ast.unparse(node.func)
            else []
        )
    }
    provided = importlib.metadata.packages_distributions()
    used = {distribution(name) for module in imported for name in provided.get(module, [])}
    # The engine composes the framework's name, so no import statement shows it.
    assert {distribution(line) for line in PYPROJECT["project"]["dependencies"]} - used <= {"os-ken"}


def test_every_dependency_is_locked_by_hash() -> None:
    lock = (ROOT / "requirements.lock").read_text()
    locked = set(re.findall(r"^([a-z0-9-]+)==[^ ]+ \\\n    --hash=sha256:", lock, flags=re.MULTILINE))
    project = PYPROJECT["project"]
    lines = [*project["dependencies"], *(line for extra in project["optional-dependencies"].values() for line in extra)]
    assert {distribution(line).replace(".", "-") for line in lines} - locked == set(), "run `make lock`"
    assert "://" not in lock, "a lock file names packages, not where somebody got them"


def test_every_package_is_shipped() -> None:
    assert tuple(PYPROJECT["tool"]["hatch"]["build"]["targets"]["wheel"]["packages"]) == PACKAGES


@pytest.mark.parametrize(("command", "target"), sorted(PYPROJECT["project"]["scripts"].items()))
def test_every_command_has_its_function(command: str, target: str) -> None:
    module, function = target.split(":")
    spec = importlib.util.find_spec(module)
    assert spec is not None, f"{command}: there is no module {module}"
    assert spec.origin is not None
    names = {
        name
        for node in parsed(Path(spec.origin)).body
        for name in (
            [node.name]
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
            else [alias.asname or alias.name for alias in node.names]
            if isinstance(node, ast.ImportFrom)
            else [t.id for t in node.targets if isinstance(t, ast.Name)]
            if isinstance(node, ast.Assign)
            else []
        )
    }
    assert function in names, f"{command}: {module} has no {function}"


# --- documents that tell the truth ---

DOCUMENTS = sorted([ROOT / "README.md", *(ROOT / "docs").glob("*.md")])


def commands(document: Path) -> Iterator[tuple[int, list[str]]]:
    """Command lines in the ```sh and bare blocks of a document, with line numbers; continuation lines are joined."""
    text = document.read_text()
    for block in re.finditer(r"^```(?:sh|console)?\n(.*?)^```$", text, flags=re.MULTILINE | re.DOTALL):
        first = text.count("\n", 0, block.start(1)) + 1
        body = re.sub(r"\\\n", "  ", block.group(1))
        for offset, line in enumerate(body.splitlines()):
            for part in re.split(r"\s(?:&&|\|)\s", line.removeprefix("$ ").removeprefix("# ")):
                try:
                    words = shlex.split(part, comments=True)
                except ValueError:
                    continue  # a drawing or a dump, not a command
                while words and (words[0] in {"sudo", "exec"} or re.fullmatch(r"[A-Z_]+=.*", words[0])):
                    words = words[1:]
                if words:
                    yield first + offset, words


ALL_COMMANDS = [(document, line, words) for document in DOCUMENTS for line, words in commands(document)]


@cache
def help_of(module: str, *subcommands: str) -> str:
    if subcommands:  # that the module can be started alone is shown by its own help
        told = run(module, *subcommands, "--help", env={"COLUMNS": "200"})
        assert told.returncode == 0, f"{module} {' '.join(subcommands)} --help fails:\n{told.stderr}"
        return told.stdout
    done = subprocess.run(
        [sys.executable, "-m", module, "--help"],
        cwd=ROOT,
        env={"PYTHONPATH": str(ROOT), "PATH": "/usr/bin:/bin", "COLUMNS": "200"},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, f"python -m {module} --help fails:\n{done.stderr}"
    return done.stdout


def check_click(module: str, words: list[str]) -> None:
    """Every subcommand and option that the document names is one that the program's own --help names."""
    subcommands: list[str] = []
    for word in words:
        if word.startswith("-"):
            break
        if re.search(rf"^  {re.escape(word)}(\s|$)", help_of(module, *subcommands), flags=re.MULTILINE):
            subcommands.append(word)
        else:
            break
    if "Commands:" in help_of(module) and words[:1] != ["--help"]:
        assert subcommands or any(word.startswith("-") for word in words[:1]), f"{module} has no command {words[:1]}"
    texts = [help_of(module, *subcommands[:depth]) for depth in range(len(subcommands) + 1)]
    for word in words:
        if word.startswith("--"):
            option = word.split("=")[0]
            assert any(re.search(rf"{re.escape(option)}\b", text) for text in texts), (
                f"{module} {subcommands}: no {option}"
            )


@pytest.mark.parametrize(
    ("document", "line", "words"),
    ALL_COMMANDS,
    ids=[f"{document.name}:{line}" for document, line, _ in ALL_COMMANDS],
)
def test_every_command_of_the_documents_exists(document: Path, line: int, words: list[str]) -> None:
    absent = [word for word in words if word.split("/")[0] in {*PACKAGES, "docs"} and not (ROOT / word).exists()]
    assert absent == []
    scripts = PYPROJECT["project"]["scripts"]
    name = Path(words[0]).name
    if name == "make":
        targets = set(re.findall(r"^([a-z0-9-]+):", (ROOT / "Makefile").read_text(), flags=re.MULTILINE))
        wanted = [word for word in words[1:] if "=" not in word and not word.startswith("-")]
        assert set(wanted) <= targets
    elif name in scripts:
        check_click(scripts[name].split(":")[0], words[1:])
    elif name.startswith("python") and words[1:2] == ["-m"] and words[2].split(".")[0] in PACKAGES:
        assert importlib.util.find_spec(words[2]) is not None, f"there is no module {words[2]}"
        check_click(words[2], words[3:])


def test_the_documents_have_commands() -> None:
    """The reader above finds something; otherwise it would praise documents that it cannot read."""
    assert ["make", "demo"] in [words for _, _, words in ALL_COMMANDS]
    assert ["make", "test"] in [words for _, _, words in ALL_COMMANDS]


def keys_of(model: type[BaseModel], prefix: str = "") -> Iterator[tuple[str, object]]:
    """Every key of a configuration file with its default (`...` if it must be given)."""
    for name, field in model.model_fields.items():
        if field.exclude:
            continue
        key = prefix + (field.alias or name)
        sections = [
            part
            for part in (field.annotation, *get_args(field.annotation))
            if isinstance(part, type) and issubclass(part, BaseModel)
        ]
        if not sections or (not field.is_required() and field.default is None):  # a section that may be missing, too
            yield key, ... if field.is_required() else field.default
        for section in sections:
            yield from keys_of(section, f"{key}.")


@pytest.mark.parametrize(("heading", "model"), [("controller.yaml", ControllerFile), ("agent.yaml", AgentConfig)])
def test_every_key_of_a_configuration_file_is_documented(heading: str, model: type[BaseModel]) -> None:
    chapter = (ROOT / "docs/operations.md").read_text().split(f"\n## {heading}\n")[1].split("\n## ")[0]
    rows = re.findall(r"^\| `([a-z0-9.-]+)` \| [^|]* \| ([^|]*) \|", chapter, flags=re.MULTILINE)
    keys = dict(keys_of(model))
    assert rows
    assert {key for key, _ in rows} == keys.keys()
    for key, told in rows:
        default = keys[key]
        if default is ...:
            assert told == "(must be given)", key
        elif isinstance(default, bool):
            assert told == f"`{str(default).lower()}`", key
        elif isinstance(default, int | float):
            assert told == f"`{default:g}`", key
        elif isinstance(default, str | Path):
            assert told == f"`{default}`", key
        else:
            assert default in (None, []), key
            assert not told.startswith("`"), key


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_links_between_documents_lead_somewhere(document: Path) -> None:
    targets = re.findall(r"\]\((?!https?:|#|mailto:)([^)#\s]+)", document.read_text())
    assert [target for target in targets if not (document.parent / target).exists()] == []
