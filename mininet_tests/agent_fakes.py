"""Stand-ins around a real agent, run as scripts on a simulated machine: HTCondor's processes, a controller, slot ads.

    agent_fakes.py startd                    condor_startd: starts starters and hands them commands (stdin, JSON)
    agent_fakes.py starter -a slot1_1 …      condor_starter: runs helpers and jobs as job users, as the real one does
    agent_fakes.py controller HOME           the northbound API on 127.0.0.1:8080, behaving as HOME/behaviour says
    agent_fakes.py query FILE                answers the agent's questions to the startd from a file
    agent_fakes.py agent FILE -- ARGS…       the real agent's command line, with that query in place of the startd's,
                                             a disk that fails as `faults` beside FILE says, and a sudden death at
                                             the step (`ovs_agent.steps`) that `die` beside FILE names

The processes are real where trust is concerned: a startd and starters with their own executable files, real uids, real
parents. Standard library only, but for `controller` and `agent`: the copied interpreter has no site packages.
"""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

HERE = str(Path(__file__).resolve())


def say(value: dict[str, Any]) -> None:
    sys.stdout.write(json.dumps(value) + "\n")
    sys.stdout.flush()


def identity(uid: int) -> dict[str, Any]:
    """Arguments of Popen for a child of this uid; an imitated daemon without power has children like itself."""
    return {"user": uid, "group": uid, "extra_groups": []} if os.geteuid() == 0 else {}


def startd() -> None:
    """Commands: {do: starter, name, exe, slot, uid}, {do: kill, name}, {to: name, …}. One JSON answer each."""
    starters: dict[str, subprocess.Popen[str]] = {}
    for line in sys.stdin:
        command = json.loads(line)
        if command.get("do") == "starter":
            argv = [command["exe"], HERE, "starter", *command.get("arguments", ["-a", command.get("slot", "")])]
            uid = command.get("uid", 0)
            starter = starters[command["name"]] = subprocess.Popen(
                argv,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                text=True,
                env=dict(os.environ, CONDOR_INHERIT=f"{os.getpid()} {command.get('parent', '<?>')} 1 0 0"),
                **identity(uid),
            )
            say({"pid": starter.pid})
        elif command.get("do") == "kill":
            starters[command["name"]].kill()
            starters[command["name"]].wait()
            say({})
        else:
            starter = starters[command["to"]]
            assert starter.stdin is not None
            assert starter.stdout is not None
            starter.stdin.write(line)
            starter.stdin.flush()
            say(json.loads(starter.stdout.readline()))


def starter() -> None:
    """Commands: spawn, wait, kill, chirp, exit. What is spawned is a direct child, as with the real starter."""
    children: dict[int, subprocess.Popen[str]] = {}

    def spawn(command: dict[str, Any]) -> subprocess.Popen[str]:
        uid = command["uid"]
        return subprocess.Popen(
            command["argv"],
            executable=command.get("exe"),
            **identity(uid),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            cwd="/",
            env={"PATH": "/usr/sbin:/usr/bin:/sbin:/bin", **command.get("env", {})},
        )

    for line in sys.stdin:
        command = json.loads(line)
        if command["do"] == "spawn":
            child = spawn(command)
            children[child.pid] = child
            say({"pid": child.pid})
        elif command["do"] == "wait":
            child = children[command["pid"]]
            try:
                out, err = child.communicate(timeout=command.get("timeout", 20))
                say({"code": child.returncode, "out": out, "err": err})
            except subprocess.TimeoutExpired:
                say({"running": True})
        elif command["do"] == "forked":  # file transfer: a fork of the starter runs the plugin
            reading, writing = os.pipe()
            if os.fork() == 0:
                child = spawn(command)
                out, err = child.communicate()
                os.write(writing, json.dumps({"code": child.returncode, "out": out, "err": err}).encode())
                os._exit(0)
            os.close(writing)
            say(json.loads(b"".join(iter(lambda fd=reading: os.read(fd, 65536), b""))))  # type: ignore[misc]
            os.close(reading)
            os.wait()
        elif command["do"] == "signal":
            os.kill(command["pid"], command["signal"])
            say({})
        elif command["do"] == "trace":  # be the tracer of a child that asked to be traced, until it ends
            trace(command["pid"])
            say({})
        elif command["do"] == "chirp":
            say({"port": echo_server()})


def trace(pid: int) -> None:
    import ctypes

    while True:
        _, status = os.waitpid(pid, 0)
        if not os.WIFSTOPPED(status):
            return
        number = os.WSTOPSIG(status)
        ctypes.CDLL(None).ptrace(7, pid, None, 0 if number == signal.SIGTRAP else number)  # PTRACE_CONT


def echo_server() -> int:
    """A loopback port that answers each line in capitals, like the starter's chirp port: opened before the job."""
    listener = socket.create_server(("127.0.0.1", 0))

    def serve() -> None:
        while True:
            connection, _ = listener.accept()
            with connection:
                connection.sendall(connection.recv(100).upper())

    threading.Thread(target=serve, daemon=True).start()
    return int(listener.getsockname()[1])


def query(file: str) -> None:
    for line in sys.stdin:
        reply = json.loads(Path(file).read_text(encoding="utf-8"))
        reply["asked"] = line
        say(reply)


def agent(file: str, arguments: list[str]) -> None:
    from ovs_agent import startd as seam
    from ovs_agent.cli import main

    seam.QUERY = (sys.executable, HERE, "query", file)
    fail_ledger(Path(file).with_name("faults"))
    die_at_a_step(Path(file).with_name("die"))
    sys.argv = ["lark-agent", *arguments]
    main()


def die_at_a_step(order: Path) -> None:
    """`die` (JSON) says `{"step": NAME, "nth": N}`: SIGKILL when NAME is reached for the Nth time from then on.

    The file goes with the process, so that it is known that the step was reached.
    """
    from ovs_agent import steps

    lock = threading.Lock()
    seen: dict[str, int] = {}

    def told(step: steps.Step) -> None:
        with lock:
            try:
                text = order.read_text()
            except FileNotFoundError:
                return
            wanted = json.loads(text)
            if step.name != wanted["step"]:
                return
            seen[text] = seen.get(text, 0) + 1
            if seen[text] >= wanted["nth"]:
                order.unlink()
                os.kill(os.getpid(), signal.SIGKILL)

    steps.told = told


def fail_ledger(faults: Path) -> None:
    """`faults` (JSON), rewritten with what is left: `{"save": [after how many calls, how many fail], "forget": …}`."""
    from ovs_agent import ledger

    lock = threading.Lock()

    def due(name: str) -> bool:
        with lock:
            if not faults.exists():
                return False
            plan = json.loads(faults.read_text())
            skip, times = plan.get(name, [0, 0])
            plan[name] = [skip - 1, times] if skip else [0, max(0, times - 1)]
            new = faults.with_name("faults.new")
            new.write_text(json.dumps(plan))
            new.rename(faults)
            return not skip and times > 0

    def spoil(name: str, error: Any) -> None:
        real = getattr(ledger.Ledger, name)

        def call(self: Any, what: Any) -> None:
            if due(name):
                raise error
            real(self, what)

        setattr(ledger.Ledger, name, call)

    # One of the two kinds each, so that neither can be relied upon.
    spoil("save", ledger.LedgerError("cannot be written: No space left on device", "a test's fault"))
    spoil("forget", OSError(30, "Read-only file system"))


def controller(home: str) -> None:
    """Keeps attempts in memory. `behaviour` (JSON): status codes by method (`{"PUT": 503}`), `sealed`, `held`,
    `scitags` (experiment and activity by slot).

    Every request is a line of `requests`; what is registered is in `attempts`.
    """
    from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

    from policies import wire

    place = Path(home)
    attempts: dict[str, wire.AttemptSpec] = {}
    known = place / "attempts"
    if known.exists():
        attempts = {k: wire.AttemptSpec.model_validate_json(v) for k, v in json.loads(known.read_text()).items()}
    lock = threading.Lock()

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, *_: object) -> None:
            pass

        def answer(self, status: int, body: dict[str, Any]) -> None:
            data = json.dumps(body).encode()
            self.send_response(status)
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

        def problem(self, status: int, slug: str, **more: Any) -> None:
            body = {"type": f"urn:lark:problem:{slug}", "title": slug, "status": status, "detail": slug}
            self.answer(status, body | more)

        def status_of(self, name: str, behaviour: dict[str, Any]) -> dict[str, Any]:
            sealed = bool(behaviour.get("sealed"))
            numbers = behaviour.get("scitags", {}).get(name.split("~")[2])
            tag = None if numbers is None else wire.ScitagView(experiment=numbers[0], activity=numbers[1])
            decision = wire.DecisionView(identity=1, sealed=sealed, groups=[], grants=[], trail=[], scitag=tag)
            done = wire.AttemptStatus(
                id=name, spec=attempts[name], decision=decision, bridges={"br-lark": wire.BridgeRealisation.REALISED}
            )
            return done.model_dump(mode="json")

        def do(self) -> None:
            body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
            behaviour = json.loads((place / "behaviour").read_text())
            with lock, (place / "requests").open("a") as log:
                log.write(json.dumps({"method": self.command, "path": self.path, "body": body.decode()}) + "\n")
            if self.headers.get("Authorization") != "Bearer agent-token-of-the-rig":
                return self.problem(401, "unauthorised")
            if self.command in behaviour:
                return self.problem(behaviour[self.command], "starting")
            if self.command == "GET" and self.path.startswith("/v1/attempts?"):
                with lock:
                    all_of_them = [self.status_of(name, behaviour) for name in attempts]
                return self.answer(200, {"attempts": all_of_them})
            kind, name, *rest = self.path.removeprefix("/v1/").split("/")
            with lock:
                if kind == "nodes" and not rest:
                    wire.NodeSpec.model_validate_json(body)
                    return self.answer(200, behaviour["grant"])
                if kind == "nodes":
                    beat = wire.Heartbeat.model_validate_json(body)
                    lease = behaviour["grant"]["lease"]
                    if beat.attempts is None:
                        agree = beat.digest == wire.attempts_digest(attempts)
                        return self.answer(200, {"lease": lease, "agree": agree, "drop": [], "gone": []})
                    drop = [a for a in beat.attempts if a not in attempts]
                    gone = [a for a in attempts if a not in beat.attempts]
                    return self.answer(200, {"lease": lease, "drop": drop, "gone": gone})
                return self.attempt(name, body, behaviour)

        def attempt(self, name: str, body: bytes, behaviour: dict[str, Any]) -> None:
            if self.command == "PUT":
                spec = wire.AttemptSpec.model_validate_json(body)
                if behaviour.get("held"):
                    return self.problem(422, "held", subcode=101, reason=behaviour["held"])
                if name in attempts and attempts[name] != spec:
                    return self.problem(409, "conflict")
                attempts[name] = spec
            elif name not in attempts:
                return self.problem(404, "no-such-attempt")
            elif self.command == "PATCH":
                wanted = wire.PhaseChange.model_validate_json(body).phase
                attempts[name] = attempts[name].model_copy(update={"phase": wanted})
            elif self.command == "DELETE":
                del attempts[name]
            new = known.with_name(f"attempts.{threading.get_ident()}.new")  # whoever looks meanwhile reads a whole file
            new.write_text(json.dumps({k: v.model_dump_json() for k, v in attempts.items()}))
            new.rename(known)
            if self.command == "DELETE":
                return self.answer(200, {"id": name, "bridges": {"br-lark": "realised"}})
            return self.answer(200, self.status_of(name, behaviour))

        do_GET = do_PUT = do_PATCH = do_POST = do_DELETE = do

    server = ThreadingHTTPServer(("127.0.0.1", 8080), Handler)
    say({"ready": True})
    server.serve_forever()


def main() -> None:
    if sys.argv[1:2] != ["controller"]:  # it outlives agents that are killed while it answers them
        signal.signal(signal.SIGPIPE, signal.SIG_DFL)
    match sys.argv[1:]:
        case ["startd", *_]:
            startd()
        case ["starter", *_]:
            starter()
        case ["controller", home]:
            controller(home)
        case ["query", file]:
            query(file)
        case ["agent", file, "--", *arguments]:
            agent(file, arguments)
        case other:
            sys.exit(f"agent_fakes: {other}?")


if __name__ == "__main__":
    main()
