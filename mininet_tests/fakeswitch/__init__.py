"""A fake OpenFlow 1.3 and 1.4 switch for tests: real TCP, real messages, no packets. See docs/fakeswitch.md.

    wire      numbers, layouts, matches as bytes
    tables    what flow-mods do
    switch    one switch: sessions, bundles, roles, meters, multiparts, faults     (no input or output)
    fleet     many switches in one thread: asyncio, TCP or TLS                     (and `python -m` it)

`FakeSwitch` by itself is for unit tests; `Fleet` runs any number against a controller; `FleetThread` does so beside an
ordinary test.
"""

from mininet_tests.fakeswitch.fleet import Fleet, FleetThread
from mininet_tests.fakeswitch.switch import FakeSwitch, Faults, Session

__all__ = ["FakeSwitch", "Faults", "Fleet", "FleetThread", "Session"]
