"""Runs one tool of the system (nft, ovs-vsctl, …) with a deadline, and says what it said when it failed.

Invariants: no shell; no inherited standard input; a tool that does not come back is killed.
"""

from __future__ import annotations

import asyncio
import shlex
from collections.abc import Mapping, Sequence

from ovs_agent.errors import AgentError


class CommandError(AgentError):
    """A tool is missing, failed, or did not come back."""


async def run(
    words: Sequence[str], *, stdin: str | None = None, timeout: float = 20.0, env: Mapping[str, str] | None = None
) -> str:
    """Standard output of a tool. Raises CommandError with its standard error."""
    shown = shlex.join(words)
    if len(shown) > 300:
        shown = shown[:300] + " …"
    try:
        process = await asyncio.create_subprocess_exec(
            *words,
            stdin=asyncio.subprocess.PIPE if stdin is not None else asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
            env=env,
        )
    except FileNotFoundError:
        raise CommandError(f"{words[0]} is not installed", shown) from None
    except OSError as e:
        raise CommandError(f"cannot be started: {e.strerror}", shown) from None
    try:
        out, err = await asyncio.wait_for(process.communicate(stdin.encode() if stdin is not None else None), timeout)
    except (TimeoutError, asyncio.CancelledError) as e:
        if process.returncode is None:
            process.kill()
        await process.wait()
        if isinstance(e, asyncio.CancelledError):
            raise
        raise CommandError(f"did not come back within {timeout:g} s", shown) from None
    if process.returncode:
        raise CommandError(err.decode(errors="replace").strip() or f"exit status {process.returncode}", shown)
    return out.decode(errors="replace")


async def succeeds(words: Sequence[str], *, timeout: float = 20.0) -> bool:
    """Whether a tool ran and exited with status 0."""
    try:
        await run(words, timeout=timeout)
    except CommandError:
        return False
    return True
