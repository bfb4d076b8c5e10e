"""The doctor's look at HTCondor's configuration on an execution point: against what `condor_bridge.render` writes.

The expectations stand here once more, by knob, because agent and HTCondor side import nothing of each other; a test
holds them to the rendered file, line by line. `knobs` is pure.

Invariants: HTCondor's own `condor_config_val` reads its configuration (`if version` in it means its version). It reads
the files: whether the daemons have read them too is not known, so the mend says condor_reconfig.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path

from ovs_agent import command
from ovs_agent.command import CommandError
from ovs_agent.config import AgentConfig
from ovs_agent.findings import Finding, fault, warning
from ovs_agent.ledger import Ledger
from ovs_agent.standing import Standing

SAME = {
    "STARTER_JOB_HOOK_KEYWORD": "LARK",
    "LARK_HOOK_PREPARE_JOB_BEFORE_TRANSFER": "{libexec}/lark-hook-prepare",
    "USER_JOB_WRAPPER": "{libexec}/lark-job-wrapper",
    "STARTD_CRON_LARK_EXECUTABLE": "{libexec}/lark-ping",
}
"""Knobs that must have exactly this value."""
EXIT_HOOK = "LARK_HOOK_JOB_EXIT"
HOOK_SECONDS = 85
"""What the prepare hook may need: 75 s for the policy, 10 s for an agent that is being restarted."""
WHY = {
    "STARTER_JOB_HOOK_KEYWORD": "no attempt begins, and the wrapper refuses every job",
    "LARK_HOOK_PREPARE_JOB_BEFORE_TRANSFER": "no attempt begins, and the wrapper refuses every job",
    "USER_JOB_WRAPPER": "jobs run in the host's own network, unless something else stops them",
    "STARTD_CRON_LARK_EXECUTABLE": "the slot never has HasLarkNetwork: no job is matched to this node",
}
NAMES = (
    *SAME,
    EXIT_HOOK,
    "LARK_HOOK_PREPARE_JOB_BEFORE_TRANSFER_TIMEOUT",
    "STARTD_CRON_JOBLIST",
    "STARTD_JOB_ATTRS",
    "START",
    "LARK_RUNS_INSIDE",
    "DISABLE_SETUID",
    "ENABLE_KERNEL_TUNING",
    "ENABLE_URL_TRANSFERS",
    "FILETRANSFER_PLUGINS",
    "SBIN",
    "CHIRP_DELAYED_UPDATE_PREFIX",
    "USE_PID_NAMESPACES",
    "STARTER_ALLOW_RUNAS_OWNER",
)
SLOT_USER = re.compile(r"SLOT\d+(_\d+)?_USER")
YAMA = Path("/proc/sys/kernel/yama/ptrace_scope")


async def examine(config: AgentConfig) -> list[Finding]:
    """HTCondor's configuration, as its own tool reads it."""
    if config.condor.config is None or not config.condor.config.exists():
        what = f"condor.config: {config.condor.config or 'not set'}: no such file"
        why = "the agent does not start without it"
        return [fault("condor.config", what, why, f"name HTCondor's main configuration file in {config.file}")]
    try:
        values = await read(config)
        version = await _version(config)
    except CommandError as e:
        why = "what HTCondor is configured to do is not known"
        mend = f"is condor.sbin right in {config.file}? condor_config_val must lie in ../bin or beside it"
        return [fault("condor.config", str(e), why, mend)]
    wanted: Sequence[str] = ()
    if (config.state_dir / "attempts").is_dir() and (grant := Ledger(config.state_dir).load_grant()) is not None:
        wanted = grant.attributes
    found = knobs(values, config.libexec, config.condor.sbin, version, wanted)
    try:
        yama = int(YAMA.read_text())
    except (OSError, ValueError):
        yama = None
    return found if config.fallback.siblings_hidden else found + siblings(values, yama)


def tool(sbin: Path) -> Path:
    """condor_config_val of the HTCondor whose daemons are in `sbin`."""
    places = (sbin.parent / "bin" / "condor_config_val", sbin / "condor_config_val", Path("/usr/bin/condor_config_val"))
    return next((place for place in places if place.exists()), places[0])


async def read(config: AgentConfig) -> dict[str, str]:
    """The knobs that matter, macros expanded; what is not defined is not in it."""
    env = {"CONDOR_CONFIG": str(config.condor.config), "PATH": "/usr/sbin:/usr/bin:/sbin:/bin"}
    text = await command.run([str(tool(config.condor.sbin)), "-dump", "-expand"], env=env)
    found = {}
    for line in text.splitlines():
        name, equals, value = line.partition(" = ")
        if equals and (name.upper() in NAMES or SLOT_USER.fullmatch(name.upper())):
            found[name.upper()] = value.strip()
    return found


async def _version(config: AgentConfig) -> tuple[int, int]:
    text = await command.run([str(tool(config.condor.sbin).with_name("condor_version"))])
    numbers = re.search(r"CondorVersion: (\d+)\.(\d+)", text)
    return (int(numbers[1]), int(numbers[2])) if numbers else (0, 0)


def knobs(
    values: Mapping[str, str], libexec: Path, sbin: Path, version: tuple[int, int], wanted: Sequence[str]
) -> list[Finding]:
    """What is wrong. `values`: by name in capitals, expanded; `wanted`: job attributes that the policy reads."""
    command_line = f"python -m condor_bridge.render execute --libexec {libexec}"
    render = f"{command_line} > …/config.d/50-lark-execute.config; condor_reconfig"
    found: list[Finding] = []

    def wrong(name: str, what: str, why: str, mend: str = render, *, soft: bool = False) -> None:
        found.append((warning if soft else fault)(f"condor.{name}", what, why, mend))

    for name, value in SAME.items():
        right = value.format(libexec=libexec)
        if values.get(name) != right:
            wrong(name, f"{name} is {values.get(name) or 'not set'}, not {right}", WHY[name])
    exit_hook = values.get(EXIT_HOOK, "")
    if exit_hook:
        why = "it costs each job a process, and nothing needs it: the job wrapper tells of the job's end"
        if version >= (24, 0):
            why = "with output transfer, HTCondor 24 and later runs such a job again and again"
        mend = "take it out of the configuration; condor_reconfig"
        wrong(EXIT_HOOK, f"{EXIT_HOOK} is set", why, mend, soft=version < (24, 0))
    seconds = values.get("LARK_HOOK_PREPARE_JOB_BEFORE_TRANSFER_TIMEOUT", "")
    if not seconds.isdecimal() or int(seconds) < HOOK_SECONDS:
        what = f"LARK_HOOK_PREPARE_JOB_BEFORE_TRANSFER_TIMEOUT is {seconds or 'not set'}"
        wrong("HOOK_TIMEOUT", what, f"the hook may wait {HOOK_SECONDS} s for the policy", soft=True)
    if "LARK" not in re.split(r"[\s,]+", values.get("STARTD_CRON_JOBLIST", "").upper()):
        wrong("STARTD_CRON_JOBLIST", "STARTD_CRON_JOBLIST lacks LARK", WHY["STARTD_CRON_LARK_EXECUTABLE"])
    start = values.get("START", "")
    if not values.get("LARK_RUNS_INSIDE") or "PreCmd" not in start or "WantDocker" not in start:
        why = "jobs are accepted that would run outside of their networks (PreCmd, Docker); the agent's guard is left"
        wrong("START", f"START does not hold LARK_RUNS_INSIDE: {start[:120] or 'not set'}", why)
    standing = Standing(wanted=tuple(wanted))
    standing.attributes_are(re.split(r"[\s,]+", values.get("STARTD_JOB_ATTRS", "")))
    if missing := standing.missing():
        more = "".join(f" --attribute {name}" for name in missing)
        mend = f"{command_line}{more} > …; condor_reconfig; systemctl reload lark-agent"
        why = "the policy reads them: a restriction that rests on one would not apply, so the node takes no jobs"
        wrong("STARTD_JOB_ATTRS", f"STARTD_JOB_ATTRS lacks {', '.join(missing)}", why, mend)
    if _true(values.get("DISABLE_SETUID", "false")):
        why = "it sets no_new_privs: file capabilities do nothing, every job is held (103)"
        mend = "take it out; then stop and start (not restart) HTCondor; or native_install --attach (docs/htcondor.md)"
        wrong("DISABLE_SETUID", "DISABLE_SETUID is true", why, mend)
    if _true(values.get("ENABLE_KERNEL_TUNING", "true")):
        why = "the master rewrites sysctls of this machine at each start, among them those of the network"
        mend = "ENABLE_KERNEL_TUNING = False, if the machine's own settings are to stay"
        wrong("ENABLE_KERNEL_TUNING", "ENABLE_KERNEL_TUNING is on (HTCondor's default)", why, mend, soft=True)
    if _true(values.get("ENABLE_URL_TRANSFERS", "true")):
        plugins = [p for p in re.split(r"[\s,]+", values.get("FILETRANSFER_PLUGINS", "")) if p]
        bare = [p for p in plugins if not p.startswith(f"{libexec}/plugins/")]
        if bare:
            why = "they run in the host's own network, as the job's owner"
            mend = "native_install --plugin and render execute --plugin for each that is needed; condor_reconfig"
            wrong("FILETRANSFER_PLUGINS", f"file-transfer plugins are not wrapped: {', '.join(bare)}", why, mend)
        if not plugins:
            why = "condor_starter 23.9.6 crashes on an empty list, and the slot matches no job"
            wrong(
                "FILETRANSFER_PLUGINS",
                "FILETRANSFER_PLUGINS is empty",
                why,
                f"ENABLE_URL_TRANSFERS = False; or {render}",
            )
    if "SBIN" in values and Path(values["SBIN"]).resolve() != sbin.resolve():
        what = f"condor.sbin is {sbin}, and HTCondor's SBIN is {values['SBIN']}"
        why = "the agent believes only what the configured condor_starter starts: every hook is refused (105)"
        wrong("SBIN", what, why, f"condor: {{sbin: {values['SBIN']}}} in agent.yaml")
    return found


def siblings(values: Mapping[str, str], yama: int | None) -> list[Finding]:
    """Whether two jobs of one user could use each other's networks. `yama`: its ptrace_scope; None: there is none."""
    slot_users = any(SLOT_USER.fullmatch(name) for name in values)
    if slot_users and not _true(values.get("STARTER_ALLOW_RUNAS_OWNER", "true")):
        return []
    if _true(values.get("USE_PID_NAMESPACES", "false")) or (yama or 0) >= 1:
        return []
    kernel = "this kernel has no Yama" if yama is None else f"kernel.yama.ptrace_scope is {yama}"
    what = f"nothing keeps two jobs of one user apart: {kernel}, USE_PID_NAMESPACES is off, and there are no slot users"
    why = "a job can trace another of the same uid and use its network: one that is sealed, that of one with a grant"
    scope = "echo kernel.yama.ptrace_scope=1 > /etc/sysctl.d/60-lark-ptrace.conf; sysctl --system; or "
    mend = (
        f"{'' if yama is None else scope}USE_PID_NAMESPACES = True, condor_reconfig; or slot users (docs/htcondor.md)"
    )
    return [warning("condor.siblings", what, why, mend)]


def _true(text: str) -> bool:
    return text.strip().lower() in ("true", "t", "1", "yes")
