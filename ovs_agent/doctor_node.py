"""The doctor's look at the machine: kernel, the native helper, the packet guard, the lanes that are there.

Invariants: what the kernel can do is tried, not read from a version; what is tried goes with the thread that tried it.
"""

from __future__ import annotations

import errno
import functools
import os
import stat
import struct
import subprocess
import sys
from pathlib import Path

from ovs_agent import fallback, leak_scan, netlink, nft, plan, trust
from ovs_agent.command import CommandError
from ovs_agent.config import AgentConfig
from ovs_agent.findings import Finding, fault, warning

NOBODY = 65534
CAP_SYS_ADMIN = 21
VFS_CAP_EFFECTIVE = 0x000001
LINKS = {
    "lark-job-wrapper": "lark-job",
    "lark-plugin": "lark-job",
    "lark-hook-prepare": "lark-hook",
    "lark-hook-exit": "lark-hook",
    "lark-ping": "lark-hook",
}


async def kernel(config: AgentConfig) -> list[Finding]:
    """Network namespaces, veth pairs, nftables: made for a moment, in a namespace that nobody sees."""
    trouble = await netlink.in_thread(lambda: netlink.try_out("lkdoc0"))
    found = []
    if trouble:
        mend = "is this a container without CAP_SYS_ADMIN and CAP_NET_ADMIN? modprobe veth"
        found.append(fault("kernel.network", trouble, "no job network can be built", mend))
    rules = plan.nft_ruleset(config.guard.uids, config.guard.loopback, config.guard.pool)
    try:
        await nft.canonical(rules)
    except CommandError as e:
        what, why = f"nftables does not take Lark's rules: {e}", "the agent does not start"
        found.append(
            fault("kernel.nftables", what, why, "apt-get install nftables (dnf install nftables); modprobe nf_tables")
        )
    return found


async def guard(config: AgentConfig) -> list[Finding]:
    """Whether the rules in force are those that the configuration means."""
    found = []
    if not config.guard.uids:
        why = "code of job owners outside of their jobs' networks reaches whatever the host reaches"
        mend = f"name the job users' uids in {config.file}, guard.uids (docs/agent.md, The guard, and its limits)"
        found.append(warning("guard.uids", "guard.uids is empty", why, mend))
    restart = "restart lark-agent: it puts them in force"
    if not await nft.present():
        what = f"there is no nftables table inet {plan.NFT_TABLE}"
        why = "the host's own stack sees what jobs send, and owners' code on the host is not stopped"
        return [*found, fault("guard.rules", what, why, restart)]
    rules = plan.nft_ruleset(config.guard.uids, config.guard.loopback, config.guard.pool)
    if await nft.in_force() != await nft.canonical(rules):
        what = f"the nftables tables {plan.NFT_TABLE} are not what {config.file} means"
        why = "somebody changed them, or the configuration was changed after the agent started"
        found.append(fault("guard.rules", what, why, restart))
    return found


async def helper(config: AgentConfig) -> list[Finding]:
    """The programs by which hooks, jobs and plugins come to the agent."""
    return await netlink.in_thread(functools.partial(_helper, config))


def _helper(config: AgentConfig) -> list[Finding]:
    libexec = config.libexec
    install = f"{sys.executable} -m condor_bridge.native_install --libexec {libexec} --socket {config.socket}"
    held = "every job is held (103), or refused (105)"
    try:
        mode = fallback.mode_of(libexec)
    except trust.Refused as e:
        return [fault("helper.attach", str(e), "no job can have a network", f"{install} --attach …")]
    found = []
    if unfit := fallback.trouble(mode, config.fallback.siblings_hidden):
        found.append(fault("helper.attach", unfit, "every job is held (104)", f"mend {config.file}, or {install}"))
    programs = trust.Programs.of(libexec, config.condor.sbin)
    sbin = f"say in {config.file}, condor.sbin, where HTCondor's own condor_starter and condor_startd are"
    condors = (str(programs.starter), str(programs.startd))
    problems = {mend: list[str]() for mend in (install, sbin)}
    for text in dict.fromkeys(programs.problems()):
        problems[sbin if text.startswith(condors) else install].append(text)
    for mend, texts in problems.items():  # one cause, one finding
        if texts:
            why = "the agent cannot tell who is calling, and does not start"
            found.append(fault("helper.programs", "; ".join(texts), why, mend))
    if not programs.job.exists():
        return found  # what leads to it leads nowhere
    if astray := [n for n, to in LINKS.items() if (libexec / n).resolve() != (libexec / to).resolve()]:
        what = "; ".join(f"{libexec / name} does not lead to {LINKS[name]}" for name in astray)
        found.append(fault("helper.links", what, held, install))
    told = _line(libexec / "lark-socket")
    if told != str(config.socket):
        what = f"{libexec}/lark-socket says {told or 'nothing'}, and the agent listens on {config.socket}"
        found.append(fault("helper.socket", what, held, install))
    found += _capability(programs.job, mode, install)
    if mode is fallback.Mode.USERNS and (trouble := _user_namespaces()):
        mend = "sysctl kernel.unprivileged_userns_clone=1 user.max_user_namespaces=65536"
        found.append(fault("helper.user-namespaces", trouble, held, mend))
    if not any(f.check == "helper.capability" for f in found):
        found += _proof(programs.job, held)
    return found + _condor_processes(programs, mode)


def _capability(program: Path, mode: fallback.Mode, install: str) -> list[Finding]:
    wanted = {CAP_SYS_ADMIN} if mode is fallback.Mode.CAPABILITY else set()
    have, effective = _capabilities(program)
    found = []
    if have != wanted or (wanted and not effective):
        names = ", ".join("cap_sys_admin" if c == CAP_SYS_ADMIN else f"capability {c}" for c in sorted(have)) or "none"
        what = f"{program} has {names}; lark-attach says {mode}"
        why = "no job enters its network: every job is held (103)"
        found.append(fault("helper.capability", what, why, f"{install} (a copy or an upgrade loses it)"))
    flags = os.statvfs(program).f_flag
    if mode is fallback.Mode.CAPABILITY and flags & os.ST_NOSUID:
        what = f"{program} is on a file system mounted nosuid"
        why = "file capabilities do nothing there: every job is held (103)"
        found.append(fault("helper.capability", what, why, "native_install --libexec on another file system"))
    return found


def _capabilities(program: Path) -> tuple[set[int], bool]:
    """Permitted file capabilities, and whether they are effective from the start."""
    try:
        data = os.getxattr(program, "security.capability")
    except OSError as e:
        if e.errno in (errno.ENODATA, errno.ENOTSUP):
            return set(), False
        raise
    magic, low, _, high, _ = struct.unpack("<5I", data[:20].ljust(20, b"\0"))
    bits = low | high << 32
    return {n for n in range(64) if bits >> n & 1}, bool(magic & VFS_CAP_EFFECTIVE)


def _proof(program: Path, why: str) -> list[Finding]:
    """The helper says as an ordinary user whether it will work."""
    done = subprocess.run(
        [str(program), "check"], user=NOBODY, group=NOBODY, extra_groups=[], capture_output=True, text=True, cwd="/"
    )
    if done.returncode == 0:
        return []
    what = f"{program} check, as an ordinary user: {(done.stderr or done.stdout).strip()}"
    return [fault("helper.proof", what, why, "the text says what is in the way; docs/htcondor.md")]


def _user_namespaces() -> str:
    for path, bad in (("/proc/sys/kernel/unprivileged_userns_clone", "0"), ("/proc/sys/user/max_user_namespaces", "0")):
        if _line(Path(path)) == bad:
            return f"{path} is {bad}: ordinary users cannot make user namespaces"
    return ""


def _condor_processes(programs: trust.Programs, mode: fallback.Mode) -> list[Finding]:
    """Whether a running startd could start our helper with its capability at all."""
    here = os.stat("/proc/self/ns/user").st_ino
    for entry in os.listdir("/proc"):
        try:
            if not entry.isdecimal() or not trust.is_program(int(entry), programs.startd, replaced_ok=True):
                continue
            text = Path(f"/proc/{entry}/status").read_text()
            contained = os.stat(f"/proc/{entry}/ns/user").st_ino != here
        except (OSError, trust.Refused):
            continue
        if mode is fallback.Mode.CAPABILITY and "\nNoNewPrivs:\t1" in text:
            what = f"condor_startd (pid {entry}) runs under no_new_privs"
            why = "file capabilities do nothing under it: every job is held (103)"
            mend = (
                "take away DISABLE_SETUID, or NoNewPrivileges= of its unit; then stop and start (not restart) HTCondor"
            )
            return [fault("helper.no-new-privs", what, why, mend)]
        if mode is fallback.Mode.CAPABILITY and contained:
            what = f"condor_startd (pid {entry}) runs in a user namespace"
            why = "file capabilities do nothing in it: every job is held (103)"
            return [
                fault("helper.user-namespaces", what, why, "run HTCondor outside of it; or docs/htcondor.md, --attach")
            ]
    return []


async def lanes(config: AgentConfig) -> list[Finding]:
    """Both ends of every lane that is there, of a job or of nobody yet; and where the agent itself is."""
    found = await netlink.in_thread(functools.partial(_lanes, config))
    pid = await netlink.in_thread(functools.partial(leak_scan.agent_pid, config.socket))
    if pid is not None and os.stat(f"/proc/{pid}/ns/mnt").st_ino != os.stat("/proc/1/ns/mnt").st_ino:
        what = f"lark-agent (pid {pid}) has a mount namespace of its own"
        why = "the names that it makes in /run/netns are seen by nobody else, and gone when it ends"
        mend = "take ProtectSystem=, PrivateTmp= and the like out of its unit; do not start it with ip netns exec"
        found.append(fault("lanes.mounts", what, why, mend))
    return found


def _lanes(config: AgentConfig) -> list[Finding]:
    found = []
    for device in netlink.job_devices():
        state = netlink.device_state(device)
        if state is None:
            continue
        wrong = [f"has {', '.join(state.addresses)}"] if state.addresses else []
        wrong += ["answers ARP"] if state.arp else []
        wrong += [] if state.up else ["is down"]
        try:
            if netlink.offload(device, netlink.ETHTOOL_GGRO):
                wrong.append("gathers packets (gro on)")
        except OSError:
            continue
        if _line(Path(f"/proc/sys/net/ipv6/conf/{device}/disable_ipv6")) == "0":
            wrong.append("speaks IPv6")
        if wrong:
            what = f"{device} {', '.join(wrong)}"
            why = "the host must not take part in a job's network; NetworkManager or the like may have touched it"
            mend = f"keep them away from {plan.PORT_PREFIX}* (docs/agent.md, Notes for operators); restart lark-agent"
            found.append(fault("lanes.outer", what, why, mend))
    for name in netlink.namespaces(plan.namespace_prefix(config.node)):
        found += _inner(name)
    return found


def _inner(name: str) -> list[Finding]:
    try:
        fd = netlink.open_namespace(name)
    except netlink.NetworkError:
        return []  # it went while we looked
    try:
        on = netlink.call_in_namespace(fd, _offloads)
    finally:
        os.close(fd)
    if not on:
        return []
    mend = f"nsenter --net=/run/netns/{name} ethtool -K {plan.INNER_DEVICE} tx off"
    return [fault("lanes.offload", f"{name}: {', '.join(on)} on", "TCP hangs while ping works", mend)]


def _offloads() -> list[str]:
    """What a userspace datapath cannot finish for a job."""
    found = []
    for word, request in (("tx", netlink.ETHTOOL_GTXCSUM), ("tso", netlink.ETHTOOL_GTSO)):
        try:
            if netlink.offload(plan.INNER_DEVICE, request):
                found.append(word)
        except OSError as e:
            if e.errno != errno.ENODEV:
                raise
    return found


def _line(path: Path) -> str:
    try:
        if not stat.S_ISREG(path.stat().st_mode):
            return ""
        return path.read_text().strip()
    except OSError:
        return ""
