"""What this machine can do, found out by doing it: before any trial, and for ``conform doctor``.

Everything is tried in processes forked for it, so that neither a namespace nor a failure stays behind in main.
"""

from __future__ import annotations

import contextlib
import os
import platform
import time
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

from conform.link.children import in_child

LinkChoice = Literal["auto", "tun", "veth"]

#: The tests' addresses are those of the documentation (RFC 5737, RFC 3849); any would do.
_ADDRESSES = {4: ("192.0.2.1", "192.0.2.2"), 6: ("2001:db8::1", "2001:db8::2")}
_CLOCK_MONOTONIC_COARSE = 6


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that was looked at. ``remedy`` is the command that mends it; ``needed``: without it nothing runs."""

    name: str
    ok: bool
    text: str
    remedy: str = ""
    needed: bool = False


@dataclass(slots=True)
class Machine:
    """What was found. ``environment`` is what the run file's header gets."""

    findings: list[Finding] = field(default_factory=list)
    environment: dict[str, Any] = field(default_factory=dict)
    link: str | None = None

    @property
    def usable(self) -> bool:
        """Whether trials can be run."""
        return self.link is not None and all(finding.ok for finding in self.findings if finding.needed)


def examine(link: LinkChoice = "auto") -> Machine:
    """Look at everything. Takes some 50 ms; never raises for what the machine lacks."""
    machine = Machine()
    machine.environment = {
        "hostname": platform.node(),
        "kernel": platform.release(),
        "machine": platform.machine(),
        "cpus": len(os.sched_getaffinity(0)),
        "python": platform.python_version(),
        "hz": _hz(),
    }
    findings = machine.findings
    findings.append(Finding("kernel", True, f"Linux {platform.release()} on {platform.machine()}, HZ {_hz()}"))
    findings.append(_python(machine.environment))
    if platform.system() != "Linux":
        findings.append(Finding("system", False, f"{platform.system()} is not Linux", "run conform on Linux", True))
        return machine
    privileged, found = _privileges(machine.environment)
    findings += found
    machine.environment["link"] = None
    if not all(finding.ok for finding in found):
        return machine
    chosen, found = _links(link, machine.environment)
    findings += found
    findings.append(_sock_diag(machine.environment))
    result = in_child(lambda: _look(privileged, chosen))
    if isinstance(result, str):
        findings.append(Finding("namespaces", False, f"the machine could not be looked at: {result}", "", True))
        return machine
    findings += [Finding(**found) for found in result["findings"]]
    machine.environment |= result["environment"]
    machine.link = chosen
    return machine


def _sock_diag(environment: dict[str, Any]) -> Finding:
    from conform.link import privileges

    check = privileges.check_sock_destroy()
    environment["sock_destroy"] = check.ok
    return Finding("sock_diag", check.ok, check.found, check.remedy, needed=True)


def acquire() -> None:
    """Give this process what trials need: nothing where it is there, else a user namespace of its own.

    Main itself enters it, before it forks anybody: warden and workers are then in it too, and files still belong to
    the user. Raises ``link.netns.PrivilegeError``; only to be called when :func:`examine` found it possible.
    """
    from conform.link import netns, privileges

    if not privileges.check_root().ok:
        netns.enter_user_namespace()


# The parts -----------------------------------------------------------------------------------------------------------
def _hz() -> int:
    return round(1 / time.clock_getres(_CLOCK_MONOTONIC_COARSE))


def _python(environment: dict[str, Any]) -> Finding:
    from importlib import metadata

    versions = {}
    for name in ("scapy", "pydantic", "PyYAML"):
        with contextlib.suppress(metadata.PackageNotFoundError):
            versions[name.lower()] = metadata.version(name)
    environment["packages"] = versions
    listed = ", ".join(f"{name} {version}" for name, version in versions.items())
    return Finding("python", True, f"Python {platform.python_version()}, {listed}")


def _look(privileged: bool, link: str | None) -> dict[str, Any]:
    """All that is seen only from inside; in a child."""
    from conform.link import netns

    findings: list[Finding] = []
    environment: dict[str, Any] = {}
    if not privileged:
        netns.enter_user_namespace()
    try:
        netns.unshare(netns.CLONE_NEWPID)
        environment["pid_namespaces"] = True
    except OSError as error:
        environment["pid_namespaces"] = False
        text = f"none ({error.strerror}): the agents of a killed run are ended one by one"
        findings.append(Finding("pid namespaces", False, text))
    netns.unshare_home()
    findings.append(_congestion(environment))
    if link is not None:
        findings += _check_fences(link, environment)
    return {"findings": [asdict(finding) for finding in findings], "environment": environment}


def _privileges(environment: dict[str, Any]) -> tuple[bool, list[Finding]]:
    """Whether namespaces can be made as we are, and what was found."""
    from conform.link import privileges

    root = privileges.check_root()
    if root.ok:
        environment["privileges"] = "root" if os.geteuid() == 0 else "capabilities"
        return True, [Finding("privileges", True, root.found, needed=True)]
    user = privileges.check_user_namespaces()
    environment["privileges"] = "user-namespace" if user.ok else "none"
    if user.ok:
        return False, [Finding("privileges", True, f"{root.found}; {user.found}, so none are needed", needed=True)]
    remedy = root.remedy if os.geteuid() == 0 else user.remedy
    return False, [Finding("privileges", False, f"{root.found}; no user namespace: {user.found}", remedy, True)]


def _congestion(environment: dict[str, Any]) -> Finding:
    from conform.link import netns
    from conform.stacks import linux

    space = netns.Namespace.create()
    available = netns.read_sysctl("net.ipv4.tcp_available_congestion_control").split()
    with space.enter():
        default = netns.read_sysctl("net.ipv4.tcp_congestion_control")
    allowed = sorted(linux.congestion_controls(space))
    environment["lacking"] = linux.lacking(space)
    space.close()
    environment["congestion_control"] = {"default": default, "allowed": allowed}
    text = f"new namespaces have {default}; {', '.join(allowed) or 'none'} can be chosen"
    lacks = [name for name in ("reno", "cubic") if name in environment["lacking"]]
    if not lacks:
        return Finding("congestion control", True, text)
    # What is there may only have to be allowed; what is not there may be a module.
    modules = " ".join(f"tcp_{name}" for name in lacks if name not in available)
    wanted = " ".join(sorted({*allowed, *lacks}))
    remedy = f"sudo modprobe -a {modules} && " if modules else ""
    remedy += f"sudo sysctl -w net.ipv4.tcp_allowed_congestion_control='{wanted}'"
    return Finding("congestion control", False, f"{text}; cases about {', '.join(lacks)} are not applicable", remedy)


def _links(wanted: LinkChoice, environment: dict[str, Any]) -> tuple[str | None, list[Finding]]:
    """The link to use, and what was found of each."""
    from conform.link import privileges

    checks = {"tun": privileges.check_tun(), "veth": privileges.check_veth()}
    findings = [
        Finding(name, check.ok, check.found, check.remedy, needed=name == wanted) for name, check in checks.items()
    ]
    candidates = ("tun", "veth") if wanted == "auto" else (wanted,)
    chosen = next((name for name in candidates if checks[name].ok), None)
    environment["link"] = chosen
    if chosen is None:
        if wanted == "auto":
            findings.append(Finding("link", False, "neither TUN nor veth can be had", checks["veth"].remedy, True))
        return None, findings
    if wanted != "auto":
        why = "asked for"
    elif chosen == "tun":
        why = "TUN can be had here, and is the faster"
    else:
        why = f"TUN cannot be had ({checks['tun'].found}), and veth needs no device"
    environment["link_reason"] = why
    return chosen, [*findings, Finding("link", True, f"{chosen}: {why}")]


def _check_fences(link: str, environment: dict[str, Any]) -> list[Finding]:
    found = _fences(link)
    environment["fences"] = {str(version): text or "ok" for version, text in found.items()}
    findings = []
    for version, text in found.items():
        if not text:
            continue
        no_ipv6 = version == 6 and not os.path.exists("/proc/net/if_inet6")
        remedy = "boot without ipv6.disable=1" if no_ipv6 else ""
        findings.append(Finding("fences", False, f"IPv{version}: {text}", remedy, needed=not no_ipv6))
    if not findings:
        text = f"over {link} an echo is answered behind the packets before it, IPv4 and IPv6"
        findings.append(Finding("fences", True, text))
    return findings


def _fences(name: str) -> dict[int, str]:
    """For each IP version what is wrong with its fences on that link, "" for nothing. Raises OSError without link."""
    from conform.link import netns
    from conform.link.codec import Fence
    from conform.link.medium import Medium
    from conform.run.loop import Loop

    loop = Loop()
    medium: Medium
    if name == "tun":
        from conform.link.tun import TunMedium

        medium = TunMedium(loop)
    else:
        from conform.link.veth import VethMedium

        medium = VethMedium(loop)
    addresses = dict(_ADDRESSES)
    if not os.path.exists("/proc/net/if_inet6"):
        del addresses[6]
    space = netns.Namespace.create()
    back: set[tuple[int, int]] = set()
    fences = {version: Fence(version, *pair) for version, pair in addresses.items()}

    def deliver(data: bytes, since: float) -> None:
        for version, fence in fences.items():
            number = fence.match(data)
            if number is not None:
                back.add((version, number))

    port = medium.attach(space, addresses, deliver)
    wanted = {(version, number) for version in fences for number in (1, 2, 3)}
    for version, number in sorted(wanted):
        port.send(fences[version].build(number))
    deadline = time.monotonic() + 2.0
    while back < wanted and time.monotonic() < deadline:
        loop.turn(0.05)
    port.close()
    medium.close()
    space.close()
    out = {4: "", 6: ""}
    for version in out:
        if version not in fences:
            out[version] = "the kernel has no IPv6"
        elif any((version, number) not in back for number in (1, 2, 3)):
            out[version] = "an echo request was not answered within 2 s"
    return out


# For people ----------------------------------------------------------------------------------------------------------
def brief(machine: Machine) -> list[str]:
    """A few lines before a run: what it runs on, and each lack with its remedy."""
    found = machine.environment
    control = found.get("congestion_control", {})
    lines = [
        f"Linux {found['kernel']}, HZ {found['hz']}, {found['cpus']} CPUs, Python {found['python']}",
    ]
    if machine.link is not None:
        fences = all(text == "ok" for text in found.get("fences", {}).values())
        lines.append(
            f"link {machine.link} ({found['link_reason']}), privileges {found['privileges']},"
            f" fences {'hold' if fences else 'do not hold'}, congestion control {' '.join(control.get('allowed', []))}"
        )
    for finding in machine.findings:
        if finding.ok or (finding.name in ("tun", "veth") and not finding.needed):
            continue
        lines.append(f"{finding.name}: {finding.text}")
        if finding.needed and finding.remedy:
            lines.append(f"  to mend it: {finding.remedy}")
    return lines
