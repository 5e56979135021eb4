"""Each cause for which a machine may refuse has its own words and its own remedy; the machines are made up."""

import errno
import stat

import pytest

from conform.link import privileges
from conform.link.privileges import NETWORK_NAMESPACE, SOCK_DESTROY, TUN, USER_NAMESPACE, VETH, Outcome, Probes

ALL = (1 << 41) - 1
NEEDED = 1 << 12 | 1 << 13 | 1 << 21


def machine(uid=1000, capabilities=0, seccomp=0, files=(), modes=(), attempts=()):
    """A machine on which all goes well but what is said."""
    contents = {"/proc/self/status": f"Name:\tx\nCapEff:\t{capabilities:016x}\nSeccomp:\t{seccomp}\n"} | dict(files)
    found = {"/proc/self/ns/user": stat.S_IFREG | 0o444, "/dev/net/tun": stat.S_IFCHR | 0o666} | dict(modes)
    outcomes = dict(attempts)
    return Probes(
        uid=lambda: uid,
        read=contents.get,
        mode=found.get,
        attempt=lambda what: outcomes.get(what, Outcome(0)),
    )


def test_a_machine_without_fault():
    probes = machine(uid=0, capabilities=ALL)
    checks = [
        privileges.check_root(probes),
        privileges.check_user_namespaces(probes),
        privileges.check_tun(probes),
        privileges.check_veth(probes),
        privileges.check_sock_destroy(probes),
    ]
    assert all(c.ok for c in checks)
    assert not any(c.remedy for c in checks)


# Root ----------------------------------------------------------------------------------------------------------------
def test_ordinary_user():
    check = privileges.check_root(machine())
    assert (check.ok, check.remedy) == (False, "sudo conform ...")


def test_root_of_a_container():
    check = privileges.check_root(machine(uid=0, capabilities=0xA80425FB))  # Docker's default set
    assert not check.ok
    assert check.found == "uid 0 without CAP_SYS_ADMIN, CAP_NET_ADMIN: a container's root"
    assert "--cap-add SYS_ADMIN" in check.remedy


def test_capabilities_do_as_well_as_uid_0():
    assert privileges.check_root(machine(capabilities=NEEDED)).ok
    assert privileges.is_privileged(machine(capabilities=NEEDED))
    assert not privileges.is_privileged(machine(capabilities=NEEDED & ~(1 << 21)))


def test_root_with_every_capability_under_seccomp():
    denied = {NETWORK_NAMESPACE: Outcome(errno.EPERM, NETWORK_NAMESPACE)}
    check = privileges.check_root(machine(uid=0, capabilities=ALL, seccomp=2, attempts=denied))
    assert not check.ok
    assert "seccomp" in check.found
    assert "docker run" in check.remedy


def test_too_many_network_namespaces():
    full = {NETWORK_NAMESPACE: Outcome(errno.ENOSPC, NETWORK_NAMESPACE)}
    files = {"/proc/sys/user/max_net_namespaces": "3"}
    check = privileges.check_root(machine(uid=0, capabilities=ALL, attempts=full, files=files))
    assert "user.max_net_namespaces is 3" in check.found
    assert check.remedy == "sudo sysctl -w user.max_net_namespaces=15000"


# User namespaces -----------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("number", "seccomp", "files", "modes", "cause", "remedy"),
    [
        (errno.ENOSPC, 0, {"/proc/sys/user/max_user_namespaces": "0"}, {},
         "user.max_user_namespaces is 0", "sudo sysctl -w user.max_user_namespaces=15000"),
        (errno.ENOSPC, 0, {"/proc/sys/user/max_user_namespaces": "7"}, {},
         "user.max_user_namespaces is 7", "sudo sysctl -w user.max_user_namespaces=15000"),
        (errno.EPERM, 0, {"/proc/sys/kernel/unprivileged_userns_clone": "0"}, {},
         "kernel.unprivileged_userns_clone is 0", "sudo sysctl -w kernel.unprivileged_userns_clone=1"),
        (errno.EPERM, 0, {"/proc/sys/kernel/apparmor_restrict_unprivileged_userns": "1"}, {},
         "AppArmor", "sudo sysctl -w kernel.apparmor_restrict_unprivileged_userns=0"),
        (errno.EACCES, 0, {"/proc/sys/kernel/apparmor_restrict_unprivileged_userns": "1"}, {},
         "AppArmor", "sudo sysctl -w kernel.apparmor_restrict_unprivileged_userns=0"),
        (errno.EPERM, 2, {"/proc/sys/kernel/unprivileged_userns_clone": "1",
                          "/proc/sys/kernel/apparmor_restrict_unprivileged_userns": "0"}, {},
         "seccomp", "docker run"),
        (errno.EPERM, 0, {}, {}, "a chroot, or a security module", "sudo conform ..."),
        (errno.EROFS, 0, {}, {}, "read-only", "systempaths=unconfined"),
        (errno.EINVAL, 0, {}, {}, "several threads", "sudo conform ..."),
        (errno.EINVAL, 0, {}, {"/proc/self/ns/user": None}, "CONFIG_USER_NS", "sudo conform ..."),
        (errno.ENOMEM, 0, {}, {}, "Cannot allocate memory", "sudo conform ..."),
    ],
)  # fmt: skip
def test_why_there_is_no_user_namespace(number, seccomp, files, modes, cause, remedy):
    attempts = {USER_NAMESPACE: Outcome(number, USER_NAMESPACE)}
    check = privileges.check_user_namespaces(machine(seccomp=seccomp, files=files, modes=modes, attempts=attempts))
    assert not check.ok
    assert cause in check.found
    assert remedy in check.remedy


def test_apparmor_is_not_blamed_when_there_is_no_refusal():
    files = {"/proc/sys/kernel/apparmor_restrict_unprivileged_userns": "1"}
    assert privileges.check_user_namespaces(machine(files=files)).ok


# TUN -----------------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("mode", "outcome", "found", "remedy"),
    [
        (None, Outcome(0), "missing", "mknod -m 666 /dev/net/tun c 10 200"),
        (stat.S_IFREG | 0o644, Outcome(0), "no character device", "sudo rm /dev/net/tun"),
        (stat.S_IFCHR | 0o600, Outcome(errno.EACCES, "open"), "mode 0600", "sudo chmod 666 /dev/net/tun"),
        (stat.S_IFCHR | 0o666, Outcome(errno.EPERM, "open"), "container", "docker run --device /dev/net/tun ..."),
        (stat.S_IFCHR | 0o666, Outcome(errno.ENODEV, "open"), "no driver", "sudo modprobe tun"),
        (stat.S_IFCHR | 0o666, Outcome(errno.EPERM, "namespace"), "no network namespace", "user-namespaces"),
        (stat.S_IFCHR | 0o666, Outcome(errno.EPERM, "TUNSETIFF"), "TUNSETIFF", "--link veth"),
    ],
)
def test_why_there_is_no_tun(mode, outcome, found, remedy):
    check = privileges.check_tun(machine(modes={"/dev/net/tun": mode}, attempts={TUN: outcome}))
    assert not check.ok
    assert found in check.found
    assert remedy in check.remedy


# The rest ------------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("outcome", "found", "remedy"),
    [
        (Outcome(errno.EOPNOTSUPP, "pair"), "no veth", "sudo modprobe veth"),
        (Outcome(errno.EAFNOSUPPORT, "packet socket"), "no packet sockets", "sudo modprobe af_packet"),
        (Outcome(errno.EPERM, "namespace"), "no network namespace", "user-namespaces"),
        (Outcome(errno.EPERM, "packet socket"), "packet socket: Operation not permitted", "--link tun"),
    ],
)
def test_why_there_is_no_veth(outcome, found, remedy):
    check = privileges.check_veth(machine(attempts={VETH: outcome}))
    assert not check.ok
    assert found in check.found
    assert remedy in check.remedy


@pytest.mark.parametrize(
    ("outcome", "found"),
    [
        (Outcome(errno.EOPNOTSUPP, "SOCK_DESTROY"), "CONFIG_INET_DIAG_DESTROY"),
        (Outcome(errno.ENOENT, "SOCK_DESTROY"), "no sock_diag"),
        (Outcome(errno.EPERM, "namespace"), "no network namespace"),
        (Outcome(errno.EPERM, "SOCK_DESTROY"), "Operation not permitted"),
    ],
)
def test_why_sockets_cannot_be_destroyed(outcome, found):
    check = privileges.check_sock_destroy(machine(attempts={SOCK_DESTROY: outcome}))
    assert not check.ok
    assert found in check.found


def test_an_attempt_that_dies_is_told_from_one_that_worked(monkeypatch):
    monkeypatch.setattr(privileges, "_attempt_here", lambda what: 1 / 0)
    assert privileges.attempt(TUN).errno == errno.EIO
