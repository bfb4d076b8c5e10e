"""The site builder: a small, real site on one machine, for the demo and for the system tests.

Every simulated machine has network, mount, PID, UTS and IPC namespaces of its own, so that real daemons (Open vSwitch,
HTCondor, xrootd, lark-controller, lark-agent) run with their usual paths and users, and the machine that carries them
sees nothing but a few processes and one run directory. `campus.Site` composes the parts.
"""
