"""Which agent this is, for people and for the controller."""

from __future__ import annotations

import importlib.metadata


def version() -> str:
    try:
        return importlib.metadata.version("htlark")
    except importlib.metadata.PackageNotFoundError:
        return "0+source"
