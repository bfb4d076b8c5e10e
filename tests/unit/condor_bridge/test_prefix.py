"""The parts of the prefix installer that need neither network nor packages."""

from __future__ import annotations

import json
import threading
from pathlib import Path

import pytest

from condor_bridge import prefix
from condor_bridge.prefix import BUILDING, RECIPE, STAMP, Package, PrefixError

SIMULATION = """\
Reading package lists...
Inst zlib1g (1:1.3.dfsg+really1.3.1-1+b1 Debian:13.7/stable [amd64])
Inst libpython3.13 (3.13.5-2+deb13u5 Debian:13.7/stable [amd64]) []
Inst condor (23.9.6+dfsg-2.1+b10 Debian:13.7/stable [amd64])
Conf condor (23.9.6+dfsg-2.1+b10 Debian:13.7/stable [amd64])
"""


def test_closure_is_read_from_apt() -> None:
    packages = prefix.parse_simulation(SIMULATION)
    assert packages == [
        Package("zlib1g", "1:1.3.dfsg+really1.3.1-1+b1"),
        Package("libpython3.13", "3.13.5-2+deb13u5"),
        Package("condor", "23.9.6+dfsg-2.1+b10"),
    ]
    assert [package.name for package in packages if prefix.wanted(package.name)] == ["zlib1g", "condor"]


@pytest.mark.parametrize("name", ["condor", "libc6", "zlib1g", "libssl3t64", "libpcre2-8-0", "libscitokens0t64"])
def test_wanted(name: str) -> None:
    assert prefix.wanted(name)


@pytest.mark.parametrize("name", ["systemd", "perl", "libjs-jquery", "libperl5.40", "libdate-manip-perl", "python3"])
def test_unwanted(name: str) -> None:
    assert not prefix.wanted(name)


@pytest.mark.parametrize("version", ["23", "23.9.6", "23.10.1"])
def test_a_point_release_does_not_matter(version: str) -> None:
    assert prefix.release_for(version).suite == "trixie"


def test_unknown_release() -> None:
    with pytest.raises(PrefixError, match="choose one of 23, 25"):
        prefix.release_for("24.0")


def stamp(where: Path, version: str, recipe: int = RECIPE, path: Path | None = None) -> None:
    text = json.dumps({"recipe": recipe, "prefix": str(path or where), "version": version, "package": version})
    (where / STAMP).write_text(text)


def test_only_a_stamp_of_this_place_and_recipe_counts(tmp_path: Path) -> None:
    release = prefix.RELEASES["23"]
    assert prefix.installed(tmp_path, release) is None
    stamp(tmp_path, "23.9.6")
    assert prefix.installed(tmp_path, release) == "23.9.6"
    stamp(tmp_path, "23.9.6", recipe=RECIPE - 1)
    assert prefix.installed(tmp_path, release) is None
    stamp(tmp_path, "23.9.6", path=tmp_path / "moved-from")
    assert prefix.installed(tmp_path, release) is None
    stamp(tmp_path, "25.14.1")
    with pytest.raises(PrefixError, match=r"holds HTCondor 25\.14\.1"):
        prefix.installed(tmp_path, release)
    (tmp_path / STAMP).write_text("{")
    with pytest.raises(PrefixError, match="damaged"):
        prefix.installed(tmp_path, release)


def test_a_complete_prefix_is_left_alone(tmp_path: Path) -> None:
    stamp(tmp_path, "23.9.6")
    assert prefix.install(prefix.RELEASES["23"], tmp_path, mirror="http://nowhere.invalid/") == "23.9.6"


def test_a_directory_of_others_is_never_cleared(tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").write_text("precious")
    with pytest.raises(PrefixError, match="not made by this program"):
        prefix._clear(tmp_path)
    assert (tmp_path / "thesis.tex").read_text() == "precious"


def test_an_unfinished_prefix_is_cleared(tmp_path: Path) -> None:
    (tmp_path / BUILDING).touch()
    (tmp_path / "usr" / "bin").mkdir(parents=True)
    (tmp_path / "lib").symlink_to("usr/lib")
    prefix._clear(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == [BUILDING]


def test_a_closed_parent_is_named(tmp_path: Path) -> None:
    closed = tmp_path / "closed"
    closed.mkdir(mode=0o700)
    with pytest.raises(PrefixError, match="closed to ordinary users"):
        prefix.check_traversable(closed / "condor")


def test_two_installers_wait_for_each_other(tmp_path: Path) -> None:
    order: list[str] = []
    inside, leave = threading.Event(), threading.Event()

    def first() -> None:
        with prefix.exclusive(tmp_path / "p"):
            order.append("first in")
            inside.set()
            leave.wait(5)
            order.append("first out")

    def second() -> None:
        with prefix.exclusive(tmp_path / "p"):
            order.append("second in")

    one = threading.Thread(target=first)
    one.start()
    assert inside.wait(5)
    two = threading.Thread(target=second)
    two.start()
    two.join(0.3)
    assert two.is_alive()
    leave.set()
    one.join(5)
    two.join(5)
    assert order == ["first in", "first out", "second in"]
