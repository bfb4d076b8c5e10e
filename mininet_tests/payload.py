"""Programs that the story's jobs run: what an ordinary owner might write. Texts only; nothing is executed here.

Each is a self-contained script for /bin/sh or /usr/bin/python3. `@HERE@` stands for the submit directory, which the job
shares with the story: it writes what it sees there, and waits there for the file `go`.
"""

from __future__ import annotations

PROBE = r'''#!/usr/bin/python3
"""probe.py NAME=HOST:PORT ...: try all at once, and tell of each: `open` when it answered, else why not.

HOST:PORT is tried by TCP, udp:HOST:PORT by one datagram that should come back, ping:HOST by one echo request.
"""
import errno, socket, subprocess, sys
from concurrent.futures import ThreadPoolExecutor

def attempt(where):
    kind, _, rest = where.partition(":")
    if kind == "ping":
        done = subprocess.run(["ping", "-c1", "-W3", rest.strip("[]")], capture_output=True, text=True)
        return {0: "open", 1: "timeout"}.get(done.returncode, "error:" + "_".join(done.stderr.split()))
    host, _, port = (rest if kind == "udp" else where).rpartition(":")
    host = host.strip("[]")
    try:
        if kind == "udp":
            with socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET, socket.SOCK_DGRAM) as s:
                s.settimeout(3)
                s.connect((host, int(port)))
                s.send(b"hello")
                return "open" if s.recv(100) == b"hello" else "garbled"
        with socket.create_connection((host, int(port)), timeout=3) as s:
            return "open"
    except socket.timeout:
        return "timeout"
    except OSError as error:
        return errno.errorcode.get(error.errno, str(error))

targets = [argument.partition("=")[::2] for argument in sys.argv[1:]]
with ThreadPoolExecutor(len(targets)) as all_at_once:
    for (name, where), found in zip(targets, all_at_once.map(lambda target: attempt(target[1]), targets)):
        print(name, where, found, flush=True)
'''
"""Prints one line a target: name, address, `open` or why not."""

WAIT = """
: > @HERE@/done
while [ ! -e @HERE@/go ]; do sleep 0.1; done
"""

FETCH = (
    """#!/bin/sh
# Fetch the protected file over IPv4 and IPv6, as any owner would, and tell its checksum.
export XRD_CONNECTIONWINDOW=5 XRD_CONNECTIONRETRY=1 XRD_REQUESTTIMEOUT=20 XRD_TIMEOUTRESOLUTION=1
exec > @HERE@/live 2>&1
for server in 10.20.0.5 '[2001:db8:20::5]'; do
    timeout 30 xrdcp -f -s root://$server:1094//data/events.root copy && sha256sum copy | sed "s|copy|root://$server|"
    rm -f copy
done
"""
    + WAIT
)

ASK_AGENT = r'''#!/usr/bin/python3
"""ask.py NAME=REQUEST ...: send each request to the agent's socket, and tell the answer."""
import socket, sys

for argument in sys.argv[1:]:
    name, _, request = argument.partition("=")
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as s:
        s.settimeout(15)
        try:
            s.connect("/run/lark/agent.sock")
            s.send(request.encode())
            reply, fds, _, _ = socket.recv_fds(s, 1024, 4)
            print(name, reply.decode(errors="replace") or "(closed)", f"fds={len(fds)}", flush=True)
        except OSError as error:
            print(name, "error:", error, flush=True)
'''

TALK = r'''#!/usr/bin/python3
"""talk.py ECHO-HOST ECHO-PORT REFUSING-HOST: 3000 datagrams there and back, 7 connections that are refused; then what
our device has counted: bytes and packets received, bytes and packets sent."""
import re, socket, sys, time
host, port, refusing = sys.argv[1], int(sys.argv[2]), sys.argv[3]
s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
s.settimeout(3)
s.connect((host, port))
for _ in range(3000):
    s.send(bytes(1400))
    s.recv(2048)
for _ in range(7):
    r = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
    r.settimeout(0.3)                             # the kernel tries again only after a second
    r.connect_ex((refusing, 1094))
    r.close()
time.sleep(2)                                     # the switch updates its counters about twice a second
found = re.search(r"eth0: *(.*)", open("/proc/self/net/dev").read())[1].split()
print(found[0], found[1], found[8], found[9], flush=True)
'''

FLOOD = r'''#!/usr/bin/python3
"""flood.py ECHO-HOST ECHO-PORT: 1000 datagrams in a second or more, and what comes back of them; then how many packets
our device has received and sent."""
import re, socket, sys, time
s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
s.settimeout(2)
s.connect((sys.argv[1], int(sys.argv[2])))
for _ in range(1000):
    s.send(bytes(1400))
    time.sleep(0.001)                             # at once, and some never come as far as the switch's counters
try:
    while s.recv(2048):
        pass
except TimeoutError:
    pass
found = re.search(r"eth0: *(.*)", open("/proc/self/net/dev").read())[1].split()
print(found[1], found[9], flush=True)
'''

LONG_CONNECTION = r'''#!/usr/bin/python3
"""Hold a connection to the file server and one to the web server, in a process that outlives the job's own."""
import os, socket, sys, time

peer = (sys.argv[1], int(sys.argv[2]))
s = socket.create_connection(peer, timeout=10)
s.sendall(bytes(12) + (4).to_bytes(4, "big") + (2012).to_bytes(4, "big"))   # xrootd's initial handshake
answer = s.recv(16)
print("connected from", s.getsockname()[0], s.getsockname()[1], "server answered", len(answer), "bytes", flush=True)
web = (sys.argv[3], int(sys.argv[4]))
w = socket.create_connection(web, timeout=10)
w.sendall(b"GET / HTTP/1.0\r\n")                       # an unfinished request: the server goes on waiting
print("connected to the web server from port", w.getsockname()[1], flush=True)
if os.fork() == 0:
    os.setsid()
    time.sleep(600)
'''

LISTENER = r'''#!/usr/bin/python3
"""Serve on this job's own addresses, by TCP and by UDP, until `go` appears."""
import json, os, socket, subprocess, threading, time

def serve(family, address):
    s = socket.socket(family, socket.SOCK_STREAM)
    s.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    if family == socket.AF_INET6:
        s.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
    s.bind((address, 7000))
    s.listen(16)
    while True:
        c, peer = s.accept()
        with open("@HERE@/visitors", "a") as f:
            f.write(peer[0] + "\n")
        c.close()

def echo(family, address):
    s = socket.socket(family, socket.SOCK_DGRAM)
    if family == socket.AF_INET6:
        s.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
    s.bind((address, 7000))
    while True:
        data, peer = s.recvfrom(2048)
        with open("@HERE@/visitors", "a") as f:
            f.write(peer[0] + "\n")
        s.sendto(data, peer)

for family, address in ((socket.AF_INET, "0.0.0.0"), (socket.AF_INET6, "::")):
    threading.Thread(target=serve, args=(family, address), daemon=True).start()
    threading.Thread(target=echo, args=(family, address), daemon=True).start()
told = json.loads(subprocess.run(["ip", "-j", "addr"], capture_output=True, text=True).stdout)
found = [a["local"] for l in told for a in l["addr_info"] if a["scope"] == "global"]
time.sleep(0.3)
own = [f"own={kind}[{a}]:7000" for a in found for kind in ("", "udp:")]
probe = subprocess.run(["./probe.py", *own], capture_output=True, text=True).stdout
with open("@HERE@/addresses.new", "w") as f:
    f.write("\n".join(found) + "\n")
with open("@HERE@/live", "w") as f:
    f.write(probe)
os.rename("@HERE@/addresses.new", "@HERE@/addresses")
while not os.path.exists("@HERE@/go"):
    time.sleep(0.1)
'''


def probing(*targets: str, wait: bool = True) -> str:
    """A job script that runs probe.py on these targets and then waits for `go`."""
    quoted = " ".join(f"'{target}'" for target in targets)
    return f"#!/bin/sh\n./probe.py {quoted} > @HERE@/live 2>&1\n" + (WAIT if wait else ": > @HERE@/done\n")


PRE_COMMAND = """#!/bin/sh
# The owner's PreCmd: HTCondor runs it outside of the job's own network.
exec > @HERE@/pre 2>&1
readlink /proc/self/ns/net
./probe.py 'fs=10.20.0.5:1094' 'fs6=[2001:db8:20::5]:1094' 'web=10.20.0.1:8000'
exit 0
"""

TRANSFER_PLUGIN = r'''#!/usr/bin/python3
"""A file-transfer plugin that the owner names in the submit file."""
import os, subprocess, sys

PROBE = r"""@PROBE@"""
if "-classad" in sys.argv:
    print('MultipleFileSupport = true\nPluginVersion = "0.1"\nPluginType = "FileTransfer"\nSupportedMethods = "mine"')
    sys.exit(0)
with open("@HERE@/plugin", "w") as f:
    print(os.readlink("/proc/self/ns/net"), file=f, flush=True)
    targets = ["fs=10.20.0.5:1094", "fs6=[2001:db8:20::5]:1094", "web=10.20.0.1:8000"]
    subprocess.run(["/usr/bin/python3", "-c", PROBE, *targets], stdout=f, stderr=f)
infile, outfile = sys.argv[sys.argv.index("-infile") + 1], sys.argv[sys.argv.index("-outfile") + 1]
with open(outfile, "w") as f:
    f.write('TransferSuccess = false\nTransferError = "the plugin only looked around"\nTransferUrl = "mine://x"\n')
sys.exit(1)
'''.replace("@PROBE@", PROBE.replace('"""', "'''"))
