"""A collector of fireflies for tests and labs: decodes what comes, and refuses whatever is not as published.

    python -m mininet_tests.fireflies --listen 127.0.0.1:10514 [--listen '[::1]:10514']

Each datagram is one line of JSON on standard output: `{"from": …, "host": …, "firefly": {…}}`, or `{"from": …,
"refused": why}`. What is accepted is written here from the published schema (scitags.org, firefly version 1), and
shares nothing with the sender.
"""

from __future__ import annotations

import argparse
import ipaddress
import json
import re
import selectors
import socket
from datetime import datetime
from typing import Annotated, Any, Literal

from pydantic import AwareDatetime, BaseModel, ConfigDict, Field, ValidationError, model_validator

HEADER = re.compile(r"<(\d{1,3})>1 (\S+) (\S{1,255}) (\S{1,48}) (\S{1,128}) (\S{1,32}) - (\{.*)", re.DOTALL)
LOCAL0 = 16
Port = Annotated[int, Field(strict=True, ge=1, le=65535)]


class Part(BaseModel):
    model_config = ConfigDict(extra="forbid", alias_generator=lambda name: name.replace("_", "-"))


class Lifecycle(Part):
    state: Literal["start", "ongoing", "end"]
    start_time: AwareDatetime
    current_time: AwareDatetime | None = None
    end_time: AwareDatetime | None = None

    @model_validator(mode="after")
    def _end(self) -> Lifecycle:
        if (self.state == "end") != (self.end_time is not None):
            raise ValueError("end-time is said at the end, and only there")
        return self


class FlowId(Part):
    afi: Literal["ipv4", "ipv6"]
    src_ip: str
    dst_ip: str
    protocol: Literal["tcp", "udp"]
    src_port: Port
    dst_port: Port

    @model_validator(mode="after")
    def _family(self) -> FlowId:
        for text in (self.src_ip, self.dst_ip):
            if f"ipv{ipaddress.ip_address(text).version}" != self.afi:
                raise ValueError(f"{text} is not of {self.afi}")
        return self


class Context(Part):
    experiment_id: Annotated[int, Field(strict=True)]
    activity_id: Annotated[int, Field(strict=True)]
    application: str | None = None


class Firefly(BaseModel):
    model_config = ConfigDict(alias_generator=lambda name: name.replace("_", "-"))
    version: Literal[1]
    flow_lifecycle: Lifecycle
    flow_id: FlowId
    context: Context


def decode(data: bytes) -> tuple[str, Firefly]:
    """The host that says it, and what. Raises ValueError with what is not as published."""
    found = HEADER.fullmatch(data.decode())
    if found is None:
        raise ValueError("not a line of syslog (RFC 5424) with a JSON document")
    priority, time, host, _, _, kind, body = found.groups()
    if int(priority) >> 3 != LOCAL0 or kind != "firefly-json":
        raise ValueError(f"priority {priority}, message {kind}: not a firefly")
    if datetime.fromisoformat(time).tzinfo is None:
        raise ValueError(f"{time} has no time zone")
    try:
        return host, Firefly.model_validate_json(body)
    except ValidationError as e:
        raise ValueError("; ".join(f"{'.'.join(map(str, p['loc']))}: {p['msg']}" for p in e.errors())) from None


def told(data: bytes, peer: str) -> dict[str, Any]:
    try:
        host, firefly = decode(data)
    except ValueError as e:
        return {"from": peer, "refused": str(e)}
    return {"from": peer, "host": host, "firefly": firefly.model_dump(mode="json", by_alias=True, exclude_none=True)}


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m mininet_tests.fireflies", description=__doc__.splitlines()[0])
    parser.add_argument("--listen", action="append", required=True, metavar="ADDRESS:PORT", help="may be repeated")
    ready = selectors.DefaultSelector()
    for place in parser.parse_args().listen:
        address, _, port = place.rpartition(":")
        address = address.strip("[]")
        made = socket.socket(socket.AF_INET6 if ":" in address else socket.AF_INET, socket.SOCK_DGRAM)
        made.bind((address, int(port)))
        ready.register(made, selectors.EVENT_READ)
        print(json.dumps({"listening": place}), flush=True)
    while True:
        for key, _ in ready.select():
            assert isinstance(key.fileobj, socket.socket)
            data, peer = key.fileobj.recvfrom(1 << 16)
            print(json.dumps(told(data, peer[0])), flush=True)


if __name__ == "__main__":
    main()
