"""Both media against this machine's kernel, as root or in a user namespace.

Each test runs in a child process, whose namespaces go with it.
"""

import ctypes
import errno
import itertools
import os
import socket
import struct
import threading
import time

import pytest
from machine import isolated

from conform.link import codec, netlink, netns, privileges
from conform.link.medium import STACK_INTERFACE
from conform.link.tun import TunMedium
from conform.link.veth import VethMedium
from conform.run.loop import Loop
from conform.tcp.segment import ACK, FIN, PSH, RST, SYN, IPFields, Option, Segment

ADDRESSES = {4: ("192.0.2.1", "192.0.2.2"), 6: ("2001:db8::1", "2001:db8::2")}
FAMILY = {4: socket.AF_INET, 6: socket.AF_INET6}
PORT = 7

#: The number of unshare(2), by machine.
UNSHARE = {"x86_64": 272, "aarch64": 97}

media = pytest.mark.parametrize("medium", [TunMedium, VethMedium])
versions = pytest.mark.parametrize("version", [4, 6])


class Link:
    """A namespace attached to a medium, and what came out of it."""

    def __init__(self, medium_class, addresses=ADDRESSES, medium=None, **options):
        self.loop = Loop()
        self.medium = medium or medium_class(self.loop)
        self.addresses = addresses
        self.arrived = []
        self.listeners = []
        self.netns = netns.Namespace.create()
        self.port = self.medium.attach(
            self.netns, addresses, lambda data, since: self.arrived.append((data, since)), **options
        )
        self.fences = {v: codec.Fence(v, *addresses[v]) for v in addresses}
        self.numbers = itertools.count(1 << 16)  # beyond sixteen bits

    def run(self, seconds, enough=lambda: False):
        end = time.monotonic() + seconds
        while not enough() and time.monotonic() < end:
            self.loop.turn(0.01)

    def inject(self, version, flags, seq=0, ack=0, **fields):
        stack, tester = self.addresses[version]
        fields = {"sport": 9999, "dport": PORT} | fields
        segment = Segment(IPFields(version, tester, stack), seq=seq, ack=ack, flags=flags, **fields)
        self.port.send(codec.build(segment))

    def settle(self, version):
        """The segments that arrived before the reply to a fence sent now."""
        number = next(self.numbers)
        fence = self.fences[version]
        self.port.send(fence.build(number))
        self.run(2, lambda: any(fence.match(data) == number for data, _ in self.arrived))
        packets, self.arrived = [data for data, _ in self.arrived], []
        assert packets, "not even the fence came back"
        assert fence.match(packets[-1]) == number
        segments = [codec.parse(data) for data in packets[:-1]]
        assert None not in segments
        return segments

    def listen(self, version):
        with self.netns.enter():
            listener = socket.socket(FAMILY[version], socket.SOCK_STREAM)
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if version == 6:
            listener.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        listener.bind(("", PORT))
        listener.listen()
        self.listeners.append(listener)
        return listener

    def establish(self, version, **fields):
        """A connection accepted by the stack, and its ISS."""
        with self.listen(version) as listener:
            self.inject(version, SYN, seq=100, **fields)
            (syn_ack,) = self.settle(version)
            self.inject(version, ACK, seq=101, ack=syn_ack.seq + 1)
            accepted, _ = listener.accept()
        return accepted, syn_ack.seq


@media
@versions
@isolated
def test_handshake_and_a_fence_behind_it(medium, version):
    link = Link(medium, {version: ADDRESSES[version]})
    link.listen(version)
    link.inject(version, SYN, seq=100, options=(Option("mss", 1000),))
    (syn_ack,) = link.settle(version)
    assert syn_ack.flags == SYN | ACK
    assert syn_ack.ack == 101
    assert (syn_ack.sport, syn_ack.dport) == (PORT, 9999)
    assert (syn_ack.checksum, syn_ack.ip.checksum, syn_ack.raw_options) == (None, None, None)
    header = 40 if version == 4 else 60
    assert syn_ack.options == (Option("mss", 1500 - header),)
    link.inject(version, RST, seq=101)
    assert link.settle(version) == []


@media
@versions
@isolated
def test_ready_at_once(medium, version):
    """What is injected right after attaching arrives, many times over: no address is late, no first packet lost."""
    shared = medium(Loop())
    for _ in range(100):
        link = Link(medium, {version: ADDRESSES[version]}, medium=shared)
        link.loop = shared._loop
        link.inject(version, SYN)
        (refused,) = link.settle(version)
        assert refused.flags == RST | ACK
        link.port.close()
        link.netns.close()


@media
@isolated
def test_an_idle_namespace_is_silent(medium):
    """No MLD, no router or neighbour solicitation, no ARP; and the same link speaks when it is spoken to."""
    link = Link(medium)
    link.run(0.5)
    assert [data.hex() for data, _ in link.arrived] == []
    assert link.settle(4) == []
    assert link.settle(6) == []
    link.run(0.3)
    assert link.arrived == []


@media
@versions
@isolated
def test_one_version_alone(medium, version):
    other = 10 - version
    link = Link(medium, {version: ADDRESSES[version]})
    stack, tester = ADDRESSES[other]
    link.port.send(codec.Fence(other, stack, tester).build(1))
    assert link.settle(version) == []


@media
@versions
@isolated
def test_large_writes_leave_in_segments_with_right_checksums(medium, version):
    link = Link(medium)
    accepted, iss = link.establish(version, options=(Option("mss", 1000),))
    accepted.send(bytes(9000))
    link.run(1, lambda: len(link.arrived) >= 9)
    segments = [codec.parse(data) for data, _ in link.arrived]
    assert [s.seq for s in segments] == [(iss + 1 + 1000 * n) % 2**32 for n in range(9)]
    assert {len(s.payload) for s in segments} == {1000}
    assert {s.checksum for s in segments} == {None}
    link.inject(version, RST, seq=101)


@media
@versions
@isolated
def test_the_stack_can_connect_at_once(medium, version):
    """Its address is ready to be chosen as a source."""
    link = Link(medium)
    with link.netns.enter():
        active = socket.socket(FAMILY[version], socket.SOCK_STREAM)
    active.setblocking(False)
    assert active.connect_ex((ADDRESSES[version][1], 80)) == errno.EINPROGRESS
    (syn,) = link.settle(version)
    assert syn.flags & SYN
    assert (syn.ip.src, syn.ip.dst) == ADDRESSES[version]
    assert syn.checksum is None


@media
@versions
@isolated
def test_an_address_that_is_not_the_testers_is_answered_too(medium, version):
    link = Link(medium)
    elsewhere = {4: "198.51.100.9", 6: "2001:db8:ffff::9"}[version]
    ip = IPFields(version, elsewhere, ADDRESSES[version][0])
    link.port.send(codec.build(Segment(ip, 9999, PORT, seq=1, flags=SYN)))
    (refused,) = link.settle(version)
    assert refused.ip.dst == elsewhere


@media
@versions
@isolated
def test_quickack(medium, version):
    """With the route's metric the acknowledgment of data is an immediate answer, time after time."""
    link = Link(medium, metrics={"quickack": 1})
    accepted, iss = link.establish(version)
    for n in range(20):
        link.inject(version, ACK | PSH, seq=101 + n, ack=iss + 1, payload=b"x")
        (answer,) = link.settle(version)
        assert answer.ack == 102 + n
    link.inject(version, ACK | FIN, seq=121, ack=iss + 1)
    (answer,) = link.settle(version)
    assert answer.ack == 122
    link.inject(version, RST, seq=122)
    accepted.close()


@media
@versions
@isolated
def test_other_metrics(medium, version):
    link = Link(medium, metrics={"initcwnd": 2})
    accepted, iss = link.establish(version, options=(Option("mss", 1000),))
    accepted.send(bytes(9000))
    assert [s.seq - iss for s in link.settle(version)] == [1, 1001]
    link.inject(version, RST, seq=101)
    with pytest.raises(KeyError):
        link.medium.attach(netns.Namespace.create(), ADDRESSES, lambda data, since: None, metrics={"no-such": 1})


@media
@isolated
def test_mtu(medium):
    link = Link(medium, mtu=1400)
    for version, header in ((4, 40), (6, 60)):
        link.listen(version)
        link.inject(version, SYN, seq=1, options=(Option("mss", 9000),))
        (syn_ack,) = link.settle(version)
        assert syn_ack.option("mss").value == 1400 - header
        link.inject(version, RST, seq=2)


@media
@isolated
def test_mtu_too_small_for_ipv6(medium):
    with pytest.raises(ValueError, match="1280"):
        Link(medium, mtu=1279)
    assert Link(medium, {4: ADDRESSES[4]}, mtu=576).settle(4) == []


@media
@isolated
def test_a_namespace_is_attached_once(medium):
    link = Link(medium)
    with pytest.raises(OSError, match=STACK_INTERFACE) as caught:
        link.medium.attach(link.netns, ADDRESSES, lambda data, since: None)
    assert caught.value.errno in (errno.EEXIST, errno.EBUSY, errno.EINVAL)
    assert link.settle(4) == []


@media
@isolated
def test_two_trials_are_told_apart(medium):
    one = Link(medium)
    two = Link(medium, medium=one.medium)
    two.loop = one.loop
    one.inject(4, SYN, sport=1)
    two.inject(4, SYN, sport=2)
    assert [s.dport for s in one.settle(4)] == [1]
    assert [s.dport for s in two.settle(4)] == [2]


@media
@isolated
def test_a_port_closed_in_the_midst_delivers_nothing_more(medium):
    link = Link(medium)

    def deliver(data, since):
        link.arrived.append(data)
        port.close()

    other = netns.Namespace.create()
    port = link.medium.attach(other, ADDRESSES, deliver)
    for n in range(3):
        port.send(link.fences[4].build(n))
    link.run(0.1)
    assert len(link.arrived) == 1
    port.close()


@media
@isolated
def test_since_bounds_the_arrival(medium):
    """Also when the loop looks late; a veth's packets have a time stamp, which says it to the point."""
    link = Link(medium)
    link.listen(4)
    link.loop.turn(0)
    link.loop.turn(0)
    before = time.monotonic()
    link.inject(4, SYN, seq=100)
    injected = time.monotonic()
    time.sleep(0.1)
    link.run(1, lambda: link.arrived)
    ((data, since),) = link.arrived
    assert codec.parse(data).flags == SYN | ACK
    assert since <= injected + 0.01
    if medium is VethMedium:
        assert since >= before - 0.001
    link.inject(4, RST, seq=101)


@isolated
def test_veth_wants_a_home_of_its_own():
    def elsewhere():
        with pytest.raises(RuntimeError, match="unshare_home"):
            VethMedium(Loop())
        refused.append(True)

    refused = []
    thread = threading.Thread(target=elsewhere)
    thread.start()
    thread.join()
    assert refused


@isolated
def test_veth_counts_what_it_lost():
    link = Link(VethMedium)
    assert link.medium.lost() == 0
    link.medium._socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    for n in range(100):
        link.port.send(link.fences[4].build(n))
    assert link.medium.lost() > 0


# Namespaces ----------------------------------------------------------------------------------------------------------
def inode():
    return os.stat("/proc/thread-self/ns/net").st_ino


@isolated
def test_enter_and_return():
    home = inode()
    one, two = netns.Namespace.create(), netns.Namespace.create()
    assert inode() == home
    with one.enter():
        inside = inode()
        with two.enter():
            assert inode() not in (home, inside)
            three = netns.Namespace.create()
        assert inode() == inside
    assert inode() == home
    assert len({os.fstat(n.fd).st_ino for n in (one, two, three)} | {home}) == 4
    with pytest.raises(ZeroDivisionError), one.enter():
        _ = 1 / 0
    assert inode() == home
    one.close()
    one.close()
    assert one.fd == -1


@isolated
def test_a_thread_has_a_home_of_its_own():
    found = []

    def work():
        netns.unshare_home()
        home = inode()
        with netns.Namespace.create().enter():
            found.append(inode())
        found.append(inode() == home)

    home = inode()
    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert found[1] is True
    assert inode() == home != found[0]


@isolated
def test_settings_are_the_namespaces_own():
    one, two = netns.Namespace.create(), netns.Namespace.create()
    with one.enter():
        netns.write_sysctl("net.ipv4.tcp_sack", 0)
    with one.enter():
        assert netns.read_sysctl("net.ipv4.tcp_sack") == "0"
    with two.enter():
        assert netns.read_sysctl("net.ipv4.tcp_sack") == "1"
        with pytest.raises(FileNotFoundError, match="no_such_thing"):
            netns.write_sysctl("net.ipv4.no_such_thing", 0)
        with pytest.raises(OSError, match="tcp_sack = maybe"):
            netns.write_sysctl("net.ipv4.tcp_sack", "maybe")


@isolated
def test_the_first_netlink_error_is_told_with_what_was_attempted():
    with netns.Namespace.create().enter(), netlink.Netlink() as link:
        good = netlink.link_set(1, flags=netlink.IFF_UP)
        with pytest.raises(OSError, match=r"add address 192\.0\.2\.7 to link 77") as caught:
            link.do([good, netlink.address_add(77, 4, "192.0.2.7"), netlink.link_delete(78)])
        assert caught.value.errno == errno.ENODEV
        link.do([good])
        with pytest.raises(OSError, match="get link 77"):
            link.operational(77)


@isolated
def test_an_index_and_metrics():
    with netns.Namespace.create().enter(), netlink.Netlink() as link:
        far = netns.Namespace.create()
        near_end = netlink.Interface(5, "near", bytes.fromhex("020000000001"), netlink.IFF_UP)
        far_end = netlink.Interface(6, "far", bytes.fromhex("020000000002"))
        link.do(
            [
                netlink.veth_add(near_end, far_end, far.fd),
                netlink.address_add(5, 4, "192.0.2.1"),
                netlink.default_route_add(5, 4, {"quickack": 1, "initcwnd": 4, "mtu": 1000}),
            ]
        )
        with far.enter(), netlink.Netlink() as far_link:
            far_link.do([netlink.link_set(6, flags=netlink.IFF_UP)])
        link.wait_operational(5)
        assert socket.if_nametoindex("near") == 5
        with pytest.raises(KeyError):
            netlink.default_route_add(5, 4, {"no-such-metric": 1})
        link.do([netlink.link_delete(5)])
        assert "near" not in [name for _, name in socket.if_nameindex()]


def forbid(number):
    """Have the system call *number* fail with EPERM in this process from now on, as a container does (seccomp(2))."""
    program = [
        (0x20, 0, 0, 0),  # load the number
        (0x15, 0, 1, number),  # if it is this one
        (0x06, 0, 0, 0x00050000 | errno.EPERM),  # SECCOMP_RET_ERRNO
        (0x06, 0, 0, 0x7FFF0000),  # SECCOMP_RET_ALLOW
    ]
    code = ctypes.create_string_buffer(b"".join(struct.pack("HBBI", *step) for step in program))
    header = ctypes.create_string_buffer(struct.pack("HxxxxxxP", len(program), ctypes.addressof(code)))
    libc = ctypes.CDLL(None, use_errno=True)
    assert libc.prctl(38, 1, 0, 0, 0) == 0  # PR_SET_NO_NEW_PRIVS
    assert libc.prctl(22, 2, header) == 0, ctypes.get_errno()  # PR_SET_SECCOMP, SECCOMP_MODE_FILTER


def makeable(most):
    """How many namespaces can be made before the limit."""
    made = []
    try:
        while len(made) <= most:
            made.append(netns.Namespace.create())
    except OSError as error:
        if error.errno != errno.ENOSPC:
            raise
    for namespace in made:
        namespace.close()
    return len(made)


@media
@isolated
def test_of_a_thousand_namespaces_none_is_left(medium):
    """The kernel itself counts: a user namespace that may own but 50 can only be had back in full if none leaks."""
    limit = 50
    netns.enter_user_namespace()
    netns.write_sysctl("user.max_net_namespaces", limit)
    loop = Loop()
    shared = medium(loop)
    made = 0
    end = time.monotonic() + 60
    while made < 1000:
        try:
            namespace = netns.Namespace.create()
        except OSError as error:
            if error.errno != errno.ENOSPC or time.monotonic() > end:
                raise
            time.sleep(0.005)
            continue
        port = shared.attach(namespace, ADDRESSES, lambda data, since: None)
        port.send(codec.Fence(4, *ADDRESSES[4]).build(made))
        loop.turn(0)
        port.close()
        namespace.close()
        made += 1
    shared.close()
    end = time.monotonic() + 10
    while (left := limit - 1 - makeable(limit)) and time.monotonic() < end:  # the home is one of them
        time.sleep(0.1)
    assert left == 0


@isolated
def test_a_limit_of_user_namespaces_is_found():
    netns.enter_user_namespace()
    netns.write_sysctl("user.max_user_namespaces", 0)
    check = privileges.check_user_namespaces()
    assert not check.ok
    assert check.remedy == "sudo sysctl -w user.max_user_namespaces=15000"
    with pytest.raises(netns.PrivilegeError, match="max_user_namespaces is 0"):
        netns.enter_user_namespace()


@pytest.mark.skipif(os.uname().machine not in UNSHARE, reason="the number of unshare(2) is not known here")
@isolated
def test_a_containers_seccomp_is_found():
    forbid(UNSHARE[os.uname().machine])
    check = privileges.check_user_namespaces()
    assert not check.ok
    assert "seccomp" in check.found
    assert "docker run" in check.remedy
    assert not privileges.check_root().ok
    assert privileges.check_veth().found == "no network namespace can be had"


@isolated
def test_the_machine_is_found_to_do_what_these_tests_do():
    for check in (privileges.check_veth(), privileges.check_sock_destroy()):
        assert check.ok, check
