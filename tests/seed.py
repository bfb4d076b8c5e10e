"""The seed of the worlds that the judges of policies see: the same in every run, unless LARK_SEED says otherwise."""

from __future__ import annotations

import os

SEED = int(os.environ.get("LARK_SEED") or 2015)
