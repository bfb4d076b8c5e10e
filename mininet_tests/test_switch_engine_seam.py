"""The seam `ryu_apps.engine` on both engines, each in a process of its own: listeners, WSGI, signals, clear errors."""

from __future__ import annotations

import contextlib
import http.client
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from mininet_tests.switch_rig import ENGINES

ROOT = Path(__file__).resolve().parent.parent
pytestmark = pytest.mark.engine

SERVER = """
import signal, sys, time
from ryu_apps import engine
signal.signal(signal.SIGUSR1, lambda number, frame: None)

def site(environ, start_response):
    if environ["PATH_INFO"] == "/slow":
        time.sleep(float(environ["QUERY_STRING"]))
    if environ["PATH_INFO"] == "/body":
        environ[engine.WELCOME]()
        environ["wsgi.input"].read()
    if environ["PATH_INFO"] == "/fault":
        raise RuntimeError("secret detail")
    start_response("200 OK", [("Content-Type", "text/plain")])
    return [b"hello"]

framework = engine.Framework(("127.0.0.1", 0))
framework.add(engine.App)
framework.start()
server = engine.serve_wsgi(site, "127.0.0.1", 0, socket_timeout=2.0, idle_timeout=4.0, deadline=1.5)
# Said from a greenlet: it runs when the main one waits, and that is when signals are taken.
engine.spawn(lambda: print(framework.address[1], server.address[1], flush=True))
engine.wait_for_signal(framework)
start = time.monotonic()
server.stop(grace=3.0)
framework.stop()
print("stopped", server.alive, round(time.monotonic() - start, 1), flush=True)
"""


def environment(engine: str) -> dict[str, str]:
    return dict(os.environ, LARK_ENGINE=engine, PYTHONPATH=str(ROOT))


def python(engine: str, code: str) -> subprocess.CompletedProcess[str]:
    argv = [sys.executable, "-c", code]
    return subprocess.run(
        argv, env=environment(engine), cwd=ROOT, capture_output=True, text=True, timeout=60, check=False
    )


class Server:
    def __init__(self, engine: str) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-c", SERVER], env=environment(engine), cwd=ROOT, text=True,
            stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        )  # fmt: skip
        assert self.process.stdout is not None
        self.openflow, self.http = map(int, self.process.stdout.readline().split())

    def get(self, path: str, timeout: float = 10.0) -> tuple[int, bytes]:
        connection = http.client.HTTPConnection("127.0.0.1", self.http, timeout=timeout)
        connection.request("GET", path)
        answer = connection.getresponse()
        return answer.status, answer.read()

    def end(self) -> tuple[str, str, float]:
        start = time.monotonic()
        self.process.send_signal(signal.SIGTERM)
        out, err = self.process.communicate(timeout=20)
        return out.strip(), err, time.monotonic() - start


@pytest.fixture(params=ENGINES)
def server(request: pytest.FixtureRequest) -> Iterator[Server]:
    running = Server(request.param)
    yield running
    if running.process.poll() is None:
        running.process.kill()
        running.process.communicate()


def listening(pid: int) -> set[int]:
    """TCP ports that a process listens on."""
    inodes = set()
    for link in Path(f"/proc/{pid}/fd").iterdir():
        found = re.fullmatch(r"socket:\[(\d+)\]", os.readlink(link))
        if found:
            inodes.add(found[1])
    ports = set()
    for table in ("tcp", "tcp6"):
        for line in Path(f"/proc/{pid}/net/{table}").read_text().splitlines()[1:]:
            words = line.split()
            if words[3] == "0A" and words[9] in inodes:
                ports.add(int(words[1].rpartition(":")[2], 16))
    return ports


@pytest.mark.parametrize("engine", ENGINES)
def test_importing_says_nothing_and_names_the_engine(engine: str) -> None:
    done = python(engine, "from ryu_apps import engine; print(engine.NAME, engine.VERSION)")
    assert (done.returncode, done.stderr) == (0, "")
    assert re.fullmatch(rf"{engine} \d[\d.]*\n", done.stdout)


def test_an_engine_that_does_not_exist_or_is_not_installed_is_a_clear_error() -> None:
    done = python("floodlight", "import ryu_apps.engine")
    assert "there is no such engine; use one of os-ken, ryu" in done.stderr
    done = python("ryu", "import sys; sys.modules['ryu'] = None; import ryu_apps.engine")
    assert "engine ryu is not installed" in done.stderr
    assert "docs/engines.md says how to install it" in done.stderr


def test_nothing_else_listens(server: Server) -> None:
    assert listening(server.process.pid) == {server.openflow, server.http}


def test_requests_run_side_by_side_and_faults_tell_clients_nothing(server: Server) -> None:
    slow = threading.Thread(target=server.get, args=("/slow?1.0",))
    slow.start()
    time.sleep(0.1)
    start = time.monotonic()
    assert server.get("/") == (200, b"hello")
    assert time.monotonic() - start < 0.8
    slow.join()
    status, body = server.get("/fault")
    assert status == 500
    assert b"secret" not in body
    assert b"Traceback" not in body


def test_a_signal_ends_it_at_once(server: Server) -> None:
    out, _, took = server.end()
    assert out == "stopped False 0.0"
    assert took < 4.0  # at once: it waits for nothing, but the machine may be busy
    assert server.process.returncode == 0


def test_a_signal_that_somebody_else_handles_does_not_end_it(server: Server) -> None:
    for _ in range(3):
        server.process.send_signal(signal.SIGUSR1)
        time.sleep(0.2)
        assert server.get("/") == (200, b"hello")
    out, _, took = server.end()
    assert out == "stopped False 0.0"
    assert took < 4.0  # at once: it waits for nothing, but the machine may be busy


@pytest.mark.parametrize(
    ("said", "answered"),
    [
        (b"GET / HTTP/1.1\r\nHost: lark\r\nX-Odd_1:  a b \r\n\r\n", (b"HTTP/1.1 200", True)),
        (b"GET / HTTP/1.1\nHost: lark\n\n", (b"HTTP/1.1 200", True)),
        (b"GET / HTTP/1.1\r\nConnection: CLOSE\r\n\r\n", (b"HTTP/1.1 200", False)),
        (b"GET / HTTP/1.0\r\n\r\n", (b"HTTP/1.1 200", False)),
        (b"GET / HTTP/1.0\r\nConnection: keep-alive\r\n\r\n", (b"HTTP/1.1 200", True)),
        (b"GET / HTTP/1.1\r\nHost: lark\r\nno colon\r\n\r\n", (b"HTTP/1.1 400", False)),
        (b"GET / HTTP/1.1\r\nHost : lark\r\n\r\n", (b"HTTP/1.1 400", False)),
        (b"GET / HTTP/1.1\r\nHost: lark\r\n folded\r\n\r\n", (b"HTTP/1.1 400", False)),
        (b"GET / HTTP/1.1\r\n" + b"".join(b"X-%d: 1\r\n" % n for n in range(100)) + b"\r\n", (b"HTTP/1.1 431", False)),
        (b"GET / HTTP/1.1\r\nContent-Length: 1\r\nTransfer-Encoding: chunked\r\n\r\n0", (b"HTTP/1.1 400", False)),
        (b"PUT /body HTTP/1.1\r\nContent-Length: 2\r\n\r\nab", (b"HTTP/1.1 200", True)),
        (b"PUT /body HTTP/1.1\r\nTransfer-Encoding: Chunked\r\n\r\n1\r\na\r\n0\r\n\r\n", (b"HTTP/1.1 200", True)),
        *(
            (b"PUT " + target + b" HTTP/1.1\r\n" + twice + b"\r\n\r\n", (b"HTTP/1.1 400", False))
            for target in (b"/body", b"//body")  # the library reads the second
            for twice in (
                b"Content-Length: 2\r\nContent-Length: 0",
                b"Content-Length: +0",
                b"Content-Length: 0_0",
                b"Transfer-Encoding: gzip, chunked",
                b"Transfer-Encoding: chunked\r\nTransfer-Encoding: identity",
                b"Authorization: Bearer a\r\nAuthorization: Bearer b",
            )
        ),
        (b"GET / HTTP/1.1\r\nX: a\rContent-Length: 0\r\n\r\n", (b"HTTP/1.1 400", False)),
    ],
)
def test_a_request_is_as_http_wants_it_or_refused(server: Server, said: bytes, answered: tuple[bytes, bool]) -> None:
    """`answered`: how the answer begins, and whether the connection stays."""
    status, stays = answered
    with socket.create_connection(("127.0.0.1", server.http), timeout=10) as client:
        client.sendall(said)
        found = b""
        while b"\r\n" not in found and (part := client.recv(65536)):
            found += part
        assert found[:12] == status
        client.sendall(b"GET / HTTP/1.1\r\nConnection: close\r\n\r\n" if stays else b"")
        if not stays:
            client.shutdown(socket.SHUT_WR)
        with contextlib.suppress(ConnectionResetError):
            while part := client.recv(65536):
                found += part
        assert found.count(b"HTTP/1.1 200") == 2 * stays + (status == b"HTTP/1.1 200" and not stays)


def test_a_request_under_way_is_finished(server: Server) -> None:
    answers: list[tuple[int, bytes]] = []
    client = threading.Thread(target=lambda: answers.append(server.get("/slow?0.8")))
    client.start()
    time.sleep(0.2)
    out, _, _ = server.end()
    client.join()
    assert answers == [(200, b"hello")]
    assert out.startswith("stopped False")


def test_a_request_that_never_ends_is_cut_off_after_the_grace(server: Server) -> None:
    cut_off: list[bool] = []

    def ask() -> None:
        try:
            server.get("/slow?60", timeout=30)
        except (OSError, http.client.HTTPException):
            cut_off.append(True)

    client = threading.Thread(target=ask)
    client.start()
    time.sleep(0.2)
    out, _, took = server.end()
    client.join()
    assert out.startswith("stopped False")
    assert cut_off == [True]
    assert 2.9 < took < 8.0


def test_an_idle_connection_does_not_delay_the_end(server: Server) -> None:
    idle = http.client.HTTPConnection("127.0.0.1", server.http, timeout=5)
    idle.request("GET", "/")
    assert idle.getresponse().read() == b"hello"
    out, _, took = server.end()
    assert out.startswith("stopped False")
    assert took < 2.9  # a request that is under way is waited for 3 s


def test_a_client_that_dawdles_is_dropped(server: Server) -> None:
    with socket.create_connection(("127.0.0.1", server.http), timeout=10) as slow:
        slow.sendall(b"GET / HT")
        start = time.monotonic()
        while slow.recv(4096):
            pass
        assert time.monotonic() - start < 6


@pytest.mark.parametrize(
    "first",
    [b"GET / HTTP/1.1\r\nX: ", b"GET /", b"POST /body HTTP/1.1\r\nHost: h\r\nContent-Length: 1000\r\n\r\n",
     b"POST /body HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\r\n\r\nff\r\n"],
    ids=["headers", "line", "body", "chunked"],
)  # fmt: skip
def test_a_request_that_trickles_is_cut_at_the_deadline(server: Server, first: bytes) -> None:
    """Each byte comes well within the time limit of a read."""
    with socket.create_connection(("127.0.0.1", server.http), timeout=0.2) as slow:
        slow.sendall(first)
        start = time.monotonic()
        ended = False
        while not ended and time.monotonic() - start < 8:
            with contextlib.suppress(TimeoutError):
                ended = _over(slow)
        assert ended
        assert 1.0 < time.monotonic() - start < 3.5
    assert server.get("/") == (200, b"hello")


def _over(slow: socket.socket) -> bool:
    try:
        slow.sendall(b"a")
        return not slow.recv(4096)
    except ConnectionError:
        return True


def test_what_is_here_as_a_whole_is_answered_however_long_that_takes(server: Server) -> None:
    assert server.get("/slow?2.5") == (200, b"hello")  # the deadline is 1.5 s


@pytest.mark.parametrize(("path", "kept"), [("/", False), ("/body", True)])
def test_only_who_is_known_may_stay_quiet_beyond_the_deadline(server: Server, path: str, kept: bool) -> None:
    connection = http.client.HTTPConnection("127.0.0.1", server.http, timeout=10)
    connection.auto_open = 0
    connection.connect()
    connection.request("POST", path, b"x")
    assert connection.getresponse().read() == b"hello"
    time.sleep(2.2)
    try:
        connection.request("GET", "/")
        alive = connection.getresponse().read() == b"hello"
    except (OSError, http.client.HTTPException):
        alive = False
    assert alive is kept


@pytest.mark.parametrize("engine", ENGINES)
def test_a_port_in_use_is_a_clear_error(engine: str) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        for code in (
            f"engine.serve_wsgi(None, '127.0.0.1', {port})",
            f"f = engine.Framework(('127.0.0.1', {port})); f.add(engine.App); f.start()",
        ):
            done = python(
                engine, f"from ryu_apps import engine\ntry:\n  {code}\nexcept engine.EngineError as e: print(e)"
            )
            assert re.search(rf"cannot listen .*127\.0\.0\.1 port {port}: Address already in use", done.stdout), (
                done.stderr
            )
