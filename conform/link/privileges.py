"""What this machine lets us do, and where it does not: why, and the command that mends it.

Everything is tried in a child process, so that the caller stays as it was. The reasoning is apart from the trying:
:class:`Probes` is what is known of the machine, and tests make their own.
"""

from __future__ import annotations

import errno
import os
import socket
import stat
import struct
from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

from conform.link.children import in_child

# capabilities(7)
CAP_NET_ADMIN, CAP_NET_RAW, CAP_SYS_ADMIN = 12, 13, 21
_NEEDED = {"CAP_SYS_ADMIN": CAP_SYS_ADMIN, "CAP_NET_ADMIN": CAP_NET_ADMIN, "CAP_NET_RAW": CAP_NET_RAW}

#: Docker's spelling; Podman takes the same.
_CONTAINER_REMEDY = "docker run --cap-add SYS_ADMIN --cap-add NET_ADMIN --security-opt apparmor=unconfined ..."
_CHILD_SECONDS = 5

USER_NAMESPACE, NETWORK_NAMESPACE, TUN, VETH, SOCK_DESTROY = (
    "user namespace", "network namespace", "tun", "veth", "sock_destroy",
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Check:
    """Whether the machine has something: what was *found*, and the command (or advice) that would mend it."""

    name: str
    ok: bool
    found: str
    remedy: str = ""


class Outcome(NamedTuple):
    """How an attempt ended: errno (0: it worked) and the step that it ended in."""

    errno: int
    step: str = ""


def _read(path: str) -> str | None:
    try:
        with open(path) as file:
            return file.read().strip()
    except OSError:
        return None


def _mode(path: str) -> int | None:
    try:
        return os.stat(path).st_mode
    except OSError:
        return None


@dataclass(frozen=True)
class Probes:
    """What is asked of the machine: the user, files (``None``: not there), modes, and attempts made in a child."""

    uid: Callable[[], int] = os.geteuid
    read: Callable[[str], str | None] = _read
    mode: Callable[[str], int | None] = _mode
    attempt: Callable[[str], Outcome] = lambda what: attempt(what)

    def status(self, key: str) -> str:
        """A line of /proc/self/status (proc_pid_status(5)), empty when it is not there."""
        for line in (self.read("/proc/self/status") or "").splitlines():
            name, _, value = line.partition(":")
            if name == key:
                return value.strip()
        return ""

    def capable(self, capability: int) -> bool:
        """Whether we have *capability* in our user namespace."""
        return bool(int(self.status("CapEff") or "0", 16) >> capability & 1)


MACHINE = Probes()


# Reasoning -----------------------------------------------------------------------------------------------------------
def is_privileged(probes: Probes = MACHINE) -> bool:
    """Whether we can make network namespaces as we are; else a user namespace is needed."""
    return all(probes.capable(capability) for capability in _NEEDED.values())


def check_root(probes: Probes = MACHINE) -> Check:
    """Whether we have root's powers over namespaces, as root in a container may not."""
    missing = [name for name, number in _NEEDED.items() if not probes.capable(number)]
    who = f"uid {probes.uid()}"
    if missing:
        lacks = f"{who} without {', '.join(missing)}"
        if probes.uid() == 0:
            return Check("root", False, f"{lacks}: a container's root", _CONTAINER_REMEDY)
        return Check("root", False, lacks, "sudo conform ...")
    outcome = probes.attempt(NETWORK_NAMESPACE)
    if outcome.errno:
        cause, remedy = _explain_namespace_error(outcome.errno, probes, "network")
        return Check("root", False, f"{who}, but {cause}", remedy)
    return Check("root", True, f"{who} with {', '.join(_NEEDED)}")


def check_user_namespaces(probes: Probes = MACHINE) -> Check:
    """Whether an ordinary user can have a user namespace of his own."""
    outcome = probes.attempt(USER_NAMESPACE)
    if not outcome.errno:
        return Check("user-namespaces", True, "a user namespace with a network namespace in it can be made")
    cause, remedy = explain_user_namespaces(outcome.errno, probes)
    return Check("user-namespaces", False, cause, remedy)


def explain_user_namespaces(number: int, probes: Probes = MACHINE) -> tuple[str, str]:
    """Why making a user namespace ended with errno *number*, and the command that mends it."""
    if probes.read("/proc/sys/user/max_user_namespaces") == "0":
        return "user.max_user_namespaces is 0", "sudo sysctl -w user.max_user_namespaces=15000"
    if probes.read("/proc/sys/kernel/unprivileged_userns_clone") == "0":  # Debian's own, and Arch's hardened kernel's
        return "kernel.unprivileged_userns_clone is 0", "sudo sysctl -w kernel.unprivileged_userns_clone=1"
    if probes.mode("/proc/self/ns/user") is None:
        return "the kernel has no user namespaces (CONFIG_USER_NS)", "sudo conform ..."
    denied = number in (errno.EPERM, errno.EACCES)
    # Ubuntu since 23.10: the call itself works, but gives no capabilities, and the next one fails.
    if denied and probes.read("/proc/sys/kernel/apparmor_restrict_unprivileged_userns") == "1":
        return (
            "AppArmor forbids it (kernel.apparmor_restrict_unprivileged_userns is 1)",
            "sudo sysctl -w kernel.apparmor_restrict_unprivileged_userns=0",
        )
    return _explain_namespace_error(number, probes, "user")


def _explain_namespace_error(number: int, probes: Probes, kind: str) -> tuple[str, str]:
    denied = number in (errno.EPERM, errno.EACCES)
    if denied and probes.status("Seccomp") == "2":
        return f"seccomp forbids making {kind} namespaces, as in a container", _CONTAINER_REMEDY
    if number == errno.ENOSPC:
        name = f"user.max_{'user' if kind == 'user' else 'net'}_namespaces"
        limit = probes.read("/proc/sys/" + name.replace(".", "/"))
        return f"no more {kind} namespaces are allowed ({name} is {limit})", f"sudo sysctl -w {name}=15000"
    if number == errno.EINVAL and kind == "user":
        return "a process with several threads cannot enter a user namespace", "sudo conform ..."
    if number == errno.EROFS:
        return "/proc is mounted read-only, as in a container", "docker run --security-opt systempaths=unconfined ..."
    reason = f"making a {kind} namespace: {os.strerror(number)}"
    if denied and kind == "user":
        return f"{reason} (a chroot, or a security module)", "sudo conform ..."
    return reason, "sudo conform ..." if probes.uid() else ""


def check_tun(probes: Probes = MACHINE) -> Check:
    """Whether a TUN interface can be made in a namespace of ours."""
    path = "/dev/net/tun"
    mode = probes.mode(path)
    if mode is None:
        return Check("tun", False, f"{path} is missing", f"sudo mkdir -p /dev/net && sudo mknod -m 666 {path} c 10 200")
    if not stat.S_ISCHR(mode):
        return Check(
            "tun", False, f"{path} is no character device", f"sudo rm {path} && sudo mknod -m 666 {path} c 10 200"
        )
    outcome = probes.attempt(TUN)
    permissions = f"mode {stat.S_IMODE(mode):04o}"
    if not outcome.errno:
        return Check("tun", True, f"a TUN interface can be made ({path} has {permissions})")
    if outcome.step == "namespace":
        return Check("tun", False, "no network namespace can be had", "see user-namespaces")
    if outcome.step == "open":
        if outcome.errno == errno.EACCES:
            return Check("tun", False, f"{path} has {permissions}", f"sudo chmod 666 {path}")
        if outcome.errno == errno.EPERM:
            return Check("tun", False, f"{path}: forbidden, as by a container", f"docker run --device {path} ...")
        if outcome.errno in (errno.ENODEV, errno.ENXIO, errno.ENOENT):
            return Check("tun", False, f"{path} has no driver behind it", "sudo modprobe tun")
    return Check("tun", False, f"{outcome.step}: {os.strerror(outcome.errno)}", "conform run --link veth ...")


def check_veth(probes: Probes = MACHINE) -> Check:
    """Whether a veth pair can be made between namespaces of ours, and a packet socket on it."""
    outcome = probes.attempt(VETH)
    if not outcome.errno:
        return Check("veth", True, "a veth pair and a packet socket can be made")
    if outcome.step == "namespace":
        return Check("veth", False, "no network namespace can be had", "see user-namespaces")
    if outcome.step == "pair" and outcome.errno in (errno.EOPNOTSUPP, errno.ENODEV):
        return Check("veth", False, "the kernel has no veth", "sudo modprobe veth")
    if outcome.step == "packet socket" and outcome.errno == errno.EAFNOSUPPORT:
        return Check("veth", False, "the kernel has no packet sockets", "sudo modprobe af_packet")
    return Check("veth", False, f"{outcome.step}: {os.strerror(outcome.errno)}", "conform run --link tun ...")


def check_sock_destroy(probes: Probes = MACHINE) -> Check:
    """Whether sock_diag(7) can destroy a socket: without it, an orphaned connection keeps its namespace for minutes."""
    outcome = probes.attempt(SOCK_DESTROY)
    if not outcome.errno:
        return Check("sock-destroy", True, "sock_diag reads out sockets and destroys them")
    if outcome.step == "namespace":
        return Check("sock-destroy", False, "no network namespace can be had", "see user-namespaces")
    if outcome.errno == errno.EOPNOTSUPP:
        return Check(
            "sock-destroy", False, "the kernel was built without CONFIG_INET_DIAG_DESTROY", "use a kernel that has it"
        )
    if outcome.errno in (errno.ENOENT, errno.EPROTONOSUPPORT):
        return Check("sock-destroy", False, "the kernel has no sock_diag for TCP", "sudo modprobe tcp_diag")
    return Check("sock-destroy", False, f"{outcome.step}: {os.strerror(outcome.errno)}")


# Trying --------------------------------------------------------------------------------------------------------------
class _FailedError(Exception):
    def __init__(self, error: OSError, step: str) -> None:
        super().__init__(step)
        self.outcome = Outcome(error.errno or errno.EIO, step)


def attempt(what: str) -> Outcome:
    """Try *what* (:data:`TUN` and the like) in a child process, which leaves nothing behind."""
    found = in_child(lambda: _attempt_here(what), _CHILD_SECONDS)
    if isinstance(found, str):
        return Outcome(errno.EIO, f"{what}: {found}")
    return Outcome(*found)


def _attempt_here(what: str) -> Outcome:
    steps: dict[str, Callable[[], None]] = {
        USER_NAMESPACE: _try_user_namespace,
        NETWORK_NAMESPACE: _try_network_namespace,
        TUN: _try_tun,
        VETH: _try_veth,
        SOCK_DESTROY: _try_sock_destroy,
    }
    try:
        steps[what]()
    except _FailedError as failed:
        return failed.outcome
    except OSError as error:
        return Outcome(error.errno or errno.EIO, what)
    return Outcome(0)


def _try_user_namespace() -> None:
    from conform.link import netns

    netns.map_user_namespace()
    netns.Namespace.create().close()  # where AppArmor restricts it, the namespace is had, but no power in it


def _try_network_namespace() -> None:
    from conform.link import netns

    netns.unshare(netns.CLONE_NEWNET)


def _enter_namespace() -> None:
    from conform.link import netns

    try:
        if is_privileged():
            netns.unshare_home()
        else:
            netns.map_user_namespace()
    except OSError as error:
        raise _FailedError(error, "namespace") from error


def _try_tun() -> None:
    from conform.link import tun

    _enter_namespace()
    try:
        os.close(os.open(tun.DEVICE, os.O_RDWR | os.O_CLOEXEC))
    except OSError as error:
        raise _FailedError(error, "open") from error
    try:
        os.close(tun.open_device(100, "probe"))
    except OSError as error:
        raise _FailedError(error, "TUNSETIFF") from error


def _try_veth() -> None:
    from conform.link.netlink import Interface, Netlink, veth_add
    from conform.link.netns import Namespace

    _enter_namespace()
    try:
        other = Namespace.create()
    except OSError as error:
        raise _FailedError(error, "namespace") from error
    try:
        near = Interface(100, "near", bytes.fromhex("020000000001"))
        far = Interface(100, "far", bytes.fromhex("020000000002"))
        Netlink().do([veth_add(near, far, other.fd)])
    except OSError as error:
        raise _FailedError(error, "pair") from error
    try:
        socket.socket(socket.AF_PACKET, socket.SOCK_DGRAM, 0).close()
    except OSError as error:
        raise _FailedError(error, "packet socket") from error


def _try_sock_destroy() -> None:
    _enter_namespace()
    listener = socket.create_server(("0.0.0.0", 0))
    port = listener.getsockname()[1]
    try:
        with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, 4) as diag:  # NETLINK_SOCK_DIAG
            # linux/inet_diag.h: inet_diag_req_v2 with an inet_diag_sockid; the cookie -1 means any.
            identity = struct.pack("!HH16s16s", port, 0, b"", b"") + struct.pack("=III", 0, 0xFFFFFFFF, 0xFFFFFFFF)
            request = struct.pack("=BBBxI", socket.AF_INET, socket.IPPROTO_TCP, 0, 1 << 10) + identity  # TCP_LISTEN
            # 21 is SOCK_DESTROY; NLM_F_REQUEST | NLM_F_ACK
            diag.send(struct.pack("=IHHII", 16 + len(request), 21, 1 | 4, 1, 0) + request)
            answer = diag.recv(4096)
    except OSError as error:
        raise _FailedError(error, "sock_diag") from error
    (code,) = struct.unpack_from("=i", answer, 16)
    if code:
        raise _FailedError(OSError(-code, os.strerror(-code)), "SOCK_DESTROY")
