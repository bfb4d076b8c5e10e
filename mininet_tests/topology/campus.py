"""For Mininet's own command: `mn --custom mininet_tests/topology/campus.py --topo campus`, as root.

`mn` is a program of the system's Python and works on the machine's own network. So the first thing done here is to
start `mn` again: with Lark's interpreter, in namespaces of its own, where it cannot touch the machine.
`--topo campus,policy=FILE` loads another policy; `job`, `matrix` and `why` are further commands of its prompt.
"""

import sys
from pathlib import Path

# Mininet executes this text without telling it where it stands.
sys.path.insert(0, str(Path((lambda: 0).__code__.co_filename).resolve().parents[2]))

from mininet_tests.topology.mn import ensure_inside

ensure_inside()

from mininet_tests.topology.mn_prompt import Prompt as CLI  # noqa: E402, F401  # `mn` looks for this name
from mininet_tests.topology.nodes import CampusTopo  # noqa: E402  # not before we are inside

topos = {"campus": CampusTopo}
