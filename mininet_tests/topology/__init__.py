"""The lab: a campus in Mininet with Lark's real daemons on it, and the matrix of who reaches whom.

`lab.Campus` is the way in from Python, `campus.py` from Mininet's own `mn`, `cli` is the command `lark-lab`.
Invariant: all of Mininet runs in namespaces of its own; the machine that carries the lab is as before, however it ends.
"""
