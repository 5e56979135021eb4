"""What this machine can do, found out by doing it: before any trial, and for ``conform doctor``.

Everything is tried in processes forked for it, so that neither a namespace nor a failure stays behind in main.
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import platform
import selectors
import signal
import socket
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

from conform.run import kernel

LinkChoice = Literal["auto", "tun", "veth"]

#: The tests' addresses are those of the documentation (RFC 5737, RFC 3849); any would do.
_ADDRESSES = {4: ("192.0.2.1", "192.0.2.2"), 6: ("2001:db8::1", "2001:db8::2")}
_CAP_NET_ADMIN, _CAP_SYS_ADMIN = 12, 21
_CLOCK_MONOTONIC_COARSE = 6
_LONGEST = 15.0


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

    def lacks_version(self) -> dict[int, str]:
        """The IP versions that cannot be had here, each with why."""
        return {int(version): why for version, why in self.environment.get("lacking", {}).items()}


def examine(link: LinkChoice = "auto") -> Machine:
    """Look at everything. Takes some 50 ms; never raises for what the machine lacks."""
    machine = Machine()
    machine.environment = {
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
    result = _in_child(lambda: _look(link))
    if isinstance(result, str):
        findings.append(Finding("privileges", False, f"the machine could not be looked at: {result}", "", True))
        return machine
    findings += [Finding(**found) for found in result["findings"]]
    machine.environment |= result["environment"]
    machine.link = result["link"]
    return machine


def acquire() -> None:
    """Give this process what trials need: nothing where it is there, else a user namespace of its own.

    Main itself enters it, before it forks anybody: warden and workers are then in it too, and files still belong to
    the user. Raises ``link.netns.PrivilegeError``; only to be called when :func:`examine` found it possible.
    """
    if not _privileged():
        from conform.link import netns

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


def _privileged() -> bool:
    """Whether this process may make network namespaces and configure them."""
    with open("/proc/self/status") as file:
        effective = next((int(line.split()[1], 16) for line in file if line.startswith("CapEff:")), 0)
    if not all(effective >> bit & 1 for bit in (_CAP_NET_ADMIN, _CAP_SYS_ADMIN)):
        return False
    return _in_child(_unshare_net) is True


def _unshare_net() -> bool:
    try:
        kernel.unshare(kernel.CLONE_NEWNET)
    except OSError:
        return False  # capabilities that a seccomp filter makes worthless
    return True


def _in_child(work: Callable[[], Any]) -> Any:
    """The result of *work*, made in a child: JSON-able. A text says why there is none."""
    reader, writer = os.pipe()
    pid = os.fork()
    if pid == 0:
        code = 1
        with contextlib.suppress(BaseException):
            os.close(reader)
            signal.alarm(int(_LONGEST))  # a child that hangs must not keep main
            kernel.die_with_parent()
            try:
                value = work()
            except Exception as error:
                value = f"{type(error).__name__}: {error}"
            with os.fdopen(writer, "w") as out:
                json.dump(value, out)
            code = 0
        os._exit(code)
    os.close(writer)
    with os.fdopen(reader) as file:
        text = file.read()
    _, status = os.waitpid(pid, 0)
    if status or not text:
        return f"the process that looked ended with status {os.waitstatus_to_exitcode(status)}"
    return json.loads(text)


def _look(link: LinkChoice) -> dict[str, Any]:
    """All that needs privileges; in a child."""
    from conform.link import netns

    findings: list[Finding] = []
    environment: dict[str, Any] = {}
    chosen: str | None = None
    try:
        findings.append(_privileges(environment))
        try:
            kernel.unshare(kernel.CLONE_NEWPID)
            environment["pid_namespaces"] = True
        except OSError as error:
            environment["pid_namespaces"] = False
            text = f"no PID namespaces ({error.strerror}): agents of a killed run are ended one by one"
            findings.append(Finding("pid namespaces", False, text))
        netns.unshare_home()
    except netns.PrivilegeError as error:
        environment["privileges"] = "none"
        findings.append(Finding("privileges", False, error.cause, error.remedy, True))
    else:
        findings.append(_congestion(environment))
        chosen, found = _links(link, environment)
        findings += found
        findings += _sock_diag(environment)
    environment["link"] = chosen
    return {"findings": [asdict(finding) for finding in findings], "environment": environment, "link": chosen}


def _privileges(environment: dict[str, Any]) -> Finding:
    if _privileged():
        environment["privileges"] = "root" if os.geteuid() == 0 else "capabilities"
        return Finding("privileges", True, f"{environment['privileges']}: network namespaces can be made", needed=True)
    from conform.link import netns

    user = os.geteuid()
    netns.enter_user_namespace()
    environment["privileges"] = "user-namespace"
    return Finding("privileges", True, f"user namespace (as user {user}): no root needed", needed=True)


def _congestion(environment: dict[str, Any]) -> Finding:
    from conform.link import netns

    def read(name: str) -> str:
        with contextlib.suppress(OSError):
            return netns.read_sysctl(f"net.ipv4.{name}")
        return ""

    default = read("tcp_congestion_control")
    available = read("tcp_available_congestion_control").split()
    usable = []
    with netns.Namespace.create().enter():
        for name in available:
            with contextlib.suppress(OSError):
                netns.write_sysctl("net.ipv4.tcp_congestion_control", name)
                usable.append(name)
    environment["congestion_control"] = {"default": default, "allowed": usable}
    text = f"new namespaces have {default}; {', '.join(usable) or 'none'} can be chosen"
    if "reno" in usable:
        return Finding("congestion control", True, text)
    return Finding("congestion control", False, f"{text}, not reno", "sudo modprobe tcp_reno")


def _links(wanted: LinkChoice, environment: dict[str, Any]) -> tuple[str | None, list[Finding]]:
    """The link to use, and what was found of each."""
    findings: list[Finding] = []
    works: dict[str, dict[int, str]] = {}
    for name in ("tun", "veth"):
        try:
            works[name] = _fences(name)
        except OSError as error:
            text, remedy = _why_no_link(name, error)
            findings.append(Finding(name, False, text, remedy, needed=name == wanted))
        else:
            findings.append(Finding(name, True, "works"))
    chosen = next((name for name in (("tun", "veth") if wanted == "auto" else (wanted,)) if name in works), None)
    if chosen is None:
        if wanted == "auto":
            findings.append(Finding("link", False, "neither TUN nor veth can be had", "", True))
        return None, findings
    if wanted != "auto":
        why = "asked for"
    elif chosen == "tun":
        why = "it may be opened here, and is the faster one"
    else:
        why = "TUN cannot be had here, and veth needs no device"
    environment["link_reason"] = why
    findings.append(Finding("link", True, f"{chosen}: {why}"))
    failed = {version: text for version, text in works[chosen].items() if text}
    environment["fences"] = {str(version): text or "ok" for version, text in works[chosen].items()}
    lacking: dict[str, str] = {}
    for version, text in failed.items():
        no_ipv6 = version == 6 and not os.path.exists("/proc/net/if_inet6")
        if no_ipv6:
            lacking[str(version)] = "this kernel has no IPv6"
        remedy = "boot without ipv6.disable=1" if no_ipv6 else ""
        findings.append(Finding("fences", no_ipv6, f"IPv{version}: {text}", remedy, needed=not no_ipv6))
    environment["lacking"] = lacking
    if not failed:
        findings.append(Finding("fences", True, "an echo is answered behind the packets before it, IPv4 and IPv6"))
    return chosen, findings


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


def _why_no_link(name: str, error: OSError) -> tuple[str, str]:
    text = error.strerror or str(error)
    if name == "veth":
        return f"a pair of interfaces cannot be made: {text}", "sudo modprobe veth"
    device = Path("/dev/net/tun")
    if error.errno == errno.ENOENT or not device.exists():
        return "there is no /dev/net/tun", "sudo modprobe tun (in a container: --device /dev/net/tun); or --link veth"
    if error.errno in (errno.EACCES, errno.EPERM):
        mode = device.stat().st_mode & 0o777
        if error.errno == errno.EPERM and os.access(device, os.R_OK | os.W_OK):
            return "/dev/net/tun may not be used in this container", "start it with --device /dev/net/tun; or --link veth"
        return f"/dev/net/tun may not be opened (mode {mode:04o})", "sudo chmod 0666 /dev/net/tun; or --link veth"
    if error.errno in (errno.ENODEV, errno.ENXIO):
        return "the kernel has no TUN driver loaded", "sudo modprobe tun; or --link veth"
    return f"a TUN interface cannot be made: {text}", "--link veth"


def _sock_diag(environment: dict[str, Any]) -> list[Finding]:
    from conform.link import netns
    from conform.stacks.sockdiag import SockDiag

    space = netns.Namespace.create()
    try:
        with space.enter():
            listener = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
        with listener:
            listener.bind(("0.0.0.0", 80))
            listener.listen()
            with contextlib.closing(SockDiag(space, _ADDRESSES)) as diag:
                state, _ = diag.state(4, 80, 0)
                environment["states"] = state == "LISTEN"
                destroyed = diag.destroy_all()
                environment["sock_destroy"] = bool(destroyed)
    except OSError as error:
        environment.setdefault("states", False)
        environment["sock_destroy"] = False
        found = f"connection states cannot be read or ended: {error.strerror}"
        return [Finding("sock_diag", False, found, "sudo modprobe tcp_diag", True)]
    finally:
        space.close()
    if not environment["states"]:
        return [Finding("sock_diag", False, "connection states cannot be read", "sudo modprobe tcp_diag", True)]
    if not environment["sock_destroy"]:
        return [
            Finding("sock_diag", False, "sockets cannot be destroyed: the kernel lacks CONFIG_INET_DIAG_DESTROY")
        ]
    return [Finding("sock_diag", True, "states can be read, sockets destroyed")]


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
        if not finding.ok and (finding.needed or finding.name not in ("tun", "veth")):
            lines.append(f"{finding.name}: {finding.text}" + (f"\n  to mend it: {finding.remedy}" if finding.remedy else ""))
    return lines
