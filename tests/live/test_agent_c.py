"""The agent in C on POSIX sockets, and conform's own on standard input and output, held against the protocol.

Each runs in a fresh network namespace whose loopback device connects its stack with itself.
"""

from __future__ import annotations

import os
import select
import shutil
import signal
import socket
import struct
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Final

import pytest
from machine import isolated

import conform
from conform.link import netlink
from conform.link.netns import Namespace
from conform.stacks import agentcheck, builds
from conform.stacks.agentcheck.bench import Bench
from conform.stacks.description import load

STACKS = Path(conform.__file__).parent / "stacks"
COMPILER = shutil.which("cc") or shutil.which("gcc")


@pytest.fixture(scope="module")
def agent_c(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The agent, built as for an initramfs; statically where there is a static libc."""
    if COMPILER is None:
        assert os.environ.get("CI") != "true", "there is no C compiler"
        pytest.skip("there is no C compiler")
    made = tmp_path_factory.mktemp("agent") / "conform-agent"
    sources = sorted(map(str, (STACKS / "agent/c").glob("*.c")))
    assert sources
    strict = ["-std=c99", "-O2", "-Wall", "-Wextra", "-Wpedantic", "-Werror"]
    static = subprocess.run([COMPILER, *strict, "-static", *sources, "-o", made, "-lpthread"], capture_output=True)
    if static.returncode:
        subprocess.run([COMPILER, *strict, *sources, "-o", made, "-lpthread"], check=True)
    return str(made)


def _in_namespace(test: Callable[[], None]) -> None:
    """Run *test* in a child process, in a namespace whose loopback device is up."""

    @isolated
    def run() -> None:
        with Namespace.create().enter(), netlink.Netlink() as link:
            link.do([netlink.link_set(1, flags=netlink.IFF_UP)])
            test()

    run()


def _problems(*command: str) -> list[str]:
    settings = {"net.ipv4.tcp_sack": "0", "net.ipv4.tcp_rmem": "4096 5000 60000"}
    found = list(agentcheck.check(agentcheck.Setup(command, bound=20.0, settings=settings)))
    problems = [str(each) for each in found if each.verdict == "failed"]
    problems += [str(each) for each in found if each.verdict == "not checked" and "does not claim" not in each.came]
    assert len(found) > 60
    return problems


def test_the_agent_in_c(agent_c: str) -> None:
    def run() -> None:
        assert _problems(agent_c) == []

    _in_namespace(run)


def test_conforms_own_agent_on_standard_input_and_output() -> None:
    def run() -> None:
        assert _problems(sys.executable, "-I", "-S", str(STACKS / "agent/stdio.py")) == []

    _in_namespace(run)


def _own_stack(name: str, cache: Path, monkeypatch: pytest.MonkeyPatch) -> agentcheck.Setup:
    """The agent in a stack's own process. It reaches itself: nobody needs to be at the other end of its device."""
    description = load(name)
    lacks = builds.missing(description)
    if lacks:
        pytest.skip(lacks[0])
    if not os.access("/dev/net/tun", os.R_OK | os.W_OK):
        pytest.skip("/dev/net/tun may not be opened")
    monkeypatch.setenv("CONFORM_CACHE", str(cache))
    built = builds.build(description, print)
    pairs = description.pairs
    command = [str(built / f"conform-agent-{name}"), "tap0", f"{pairs[4][0]}/24", f"{pairs[6][0]}/64"]
    link = {"interface": "tap0", "mtu": 1500}
    return agentcheck.Setup(command, pairs, {4: {**link, "prefix": 24}, 6: {**link, "prefix": 64}}, bound=20.0)


@pytest.mark.parametrize("name", ["lwip", "lwipv6"])
def test_the_agent_in_c_with_a_stack_of_its_own(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    setup = _own_stack(name, tmp_path, monkeypatch)

    def run() -> None:
        found = list(agentcheck.check(setup))
        assert [str(each) for each in found if each.verdict == "failed"] == []
        assert sum(each.verdict == "ok" for each in found) > 50

    _in_namespace(run)


def test_calls_that_wait_on_one_descriptor_for_different_things(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    setup = _own_stack("lwipv6", tmp_path, monkeypatch)

    def run() -> None:
        bench = Bench(setup, 4)
        try:
            bench.hello()
            with netlink.Netlink() as link:
                tap = socket.if_nametoindex("tap0")
                link.do([netlink.link_set(tap, flags=netlink.IFF_UP), netlink.address_add(tap, 4, bench.tester, 24)])
            bench.ok("socket")
            bench.ok("bind", port=80)
            bench.ok("listen")
            with socket.create_connection((bench.stack, 80), timeout=20) as peer:
                bench.ok("accept", timeout=20)
                receive = bench.begin("recv", overlap=True)
                bench.blocked(receive)
                bench.blocked(bench.begin("poll", on="c1", events=["pri"], overlap=True))
                peer.sendall(b"a")
                assert bench.end(receive)["data"] == "61"
        finally:
            bench.agent.close()

    _in_namespace(run)


class _Talk:
    """The agent, in a trial on IPv4."""

    def __init__(self, agent_c: str) -> None:
        self.bench = Bench(agentcheck.Setup([agent_c], bound=20.0), 4)
        self.bench.hello()

    def __enter__(self) -> Bench:
        return self.bench

    def __exit__(self, *_: object) -> None:
        self.bench.agent.close()


def _peers(bench: Bench, port: int) -> Iterator[socket.socket]:
    """Connections of this process with the agent's listener on *port*, accepted as c1, c2 and so on."""
    bench.ok("socket")
    bench.ok("bind", port=port)
    bench.ok("listen")
    for number in (1, 2, 3):
        sock = socket.create_connection(("127.0.0.1", port), timeout=20)
        bench.ok("accept", name=f"c{number}")
        yield sock


def test_a_hello_and_the_end_of_input_reset_connections(agent_c: str) -> None:
    def run() -> None:
        with _Talk(agent_c) as bench:
            for again in (True, False):
                peers = _peers(bench, 4000 + again)
                quiet, asleep = next(peers), next(peers)
                bench.blocked(bench.begin("recv", on="c2", overlap=True))
                assert "hello" in bench.hello() if again else bench.agent.finish() == 0
                for peer in (quiet, asleep):
                    with pytest.raises(ConnectionResetError):
                        peer.recv(1)

    _in_namespace(run)


def test_close_with_a_time_to_linger_sleeps_until_the_fin_is_acknowledged(agent_c: str) -> None:
    def run() -> None:
        with _Talk(agent_c) as bench:
            peer = next(_peers(bench, 4002))
            bench.ok("setsockopt", on="c1", option="SO_LINGER", value={"onoff": True, "linger": 30})
            bench.ok("send", on="c1", payload="00" * 8_000_000, flags=["MSG_DONTWAIT"])
            close = bench.begin("close", overlap=True)
            bench.blocked(close)
            assert bench.ask("recv")["error"] == "EBADF"
            bench.agent.quiet()
            assert bench.agent.unheard(close)
            while peer.recv(1 << 20):
                pass
            peer.close()
            assert bench.end(close) == {"id": close, "returned": 0}

    _in_namespace(run)


def test_a_sleeping_send_returns_what_went_before_the_reset(agent_c: str) -> None:
    def run() -> None:
        with _Talk(agent_c) as bench:
            peer = next(_peers(bench, 4003))
            send = bench.begin("send", on="c1", payload="00" * 8_000_000, overlap=True)
            bench.blocked(send)
            peer.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            peer.close()
            assert 0 < bench.end(send)["returned"] < 8_000_000
            assert bench.ask("send", on="c1", payload="00")["error"] == "ECONNRESET"
            reply = bench.ask("send", on="c1", payload="00")
            assert (reply["error"], reply["signals"]) == ("EPIPE", ["SIGPIPE"])

    _in_namespace(run)


def test_times_of_the_sockets_own(agent_c: str) -> None:
    def run() -> None:
        with _Talk(agent_c) as bench:
            peer = next(_peers(bench, 4004))
            bench.ok("setsockopt", on="c1", option="SO_RCVTIMEO", value={"sec": 0, "usec": 200000})
            receive = bench.begin("recv", on="c1", overlap=True)
            bench.blocked(receive)
            assert bench.end(receive)["error"] == "EAGAIN"
            began = time.monotonic()
            peer.send(b"ab")
            reply = bench.agent.reply(bench.begin("recv", on="c1", size=4, flags=["MSG_WAITALL"]))
            assert (reply["data"], time.monotonic() - began > 0.15) == ("6162", True)
            assert bench.agent.reply(bench.begin("recv", on="c1", timeout=0.05)) == {
                "id": bench_id(bench),
                "timeout": True,
            }

    def bench_id(bench: Bench) -> int:
        return max(
            int(line.partition('"id": ')[2].partition(",")[0]) for line in bench.agent.lines[-2:] if '"do"' in line
        )

    _in_namespace(run)


def test_all_that_is_waited_for_comes_after_a_half_close_too(agent_c: str) -> None:
    def run() -> None:
        with _Talk(agent_c) as bench:
            peers = _peers(bench, 4005)
            for ahead in (True, False):
                name, peer = ("c1", "c2")[not ahead], next(peers)
                bench.ok("shutdown", on=name, how="wr")
                wanted = {"on": name, "size": 9, "flags": ["MSG_WAITALL"], "timeout": 20.0, "overlap": True}
                if ahead:
                    peer.sendall(b"abcde")
                    peer.shutdown(socket.SHUT_WR)
                    bench.ok("poll", on=name, events=["hup"], timeout=20.0)
                    receive = bench.begin("recv", **wanted)
                else:
                    receive = bench.begin("recv", **wanted)
                    bench.blocked(receive)
                    peer.sendall(b"ab")
                    bench.agent.quiet()
                    peer.sendall(b"cde")
                    peer.shutdown(socket.SHUT_WR)
                assert bench.end(receive) == {"id": receive, "returned": 5, "data": "6162636465"}

    _in_namespace(run)


def test_what_came_before_a_reset_is_received_and_then_the_error(agent_c: str) -> None:
    def run() -> None:
        with _Talk(agent_c) as bench:
            peer = next(_peers(bench, 4006))
            receive = bench.begin("recv", size=9, flags=["MSG_WAITALL"], overlap=True)
            bench.blocked(receive)
            peer.sendall(b"ab")
            bench.agent.quiet()
            peer.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            peer.sendall(b"cde")
            peer.close()
            assert bench.end(receive)["data"] == "6162636465"
            assert bench.ask("recv", size=9)["error"] == "ECONNRESET"

    _in_namespace(run)


LINGER: Final = {"option": "SO_LINGER", "value": {"onoff": True, "linger": 30}}


def _fill(bench: Bench, name: str) -> None:
    assert bench.ok("send", on=name, payload="00" * 8_000_000, flags=["MSG_DONTWAIT"])["returned"] < 8_000_000


def _drain(peer: socket.socket) -> None:
    while peer.recv(1 << 20):
        pass


def test_an_accepted_socket_has_its_listeners_times(agent_c: str) -> None:
    def run() -> None:
        with _Talk(agent_c) as bench:
            bench.ok("socket")
            bench.ok("setsockopt", on="listener", **LINGER)
            bench.ok("setsockopt", on="listener", option="SO_RCVTIMEO", value={"sec": 0, "usec": 100000})
            bench.ok("setsockopt", on="listener", option="SO_RCVLOWAT", value=3)
            bench.ok("bind", port=4007)
            bench.ok("listen")
            with socket.create_connection(("127.0.0.1", 4007), timeout=20) as peer:
                bench.ok("accept")
                receive = bench.begin("recv", overlap=True)
                bench.blocked(receive)
                assert bench.end(receive)["error"] == "EAGAIN"
                peer.sendall(b"ab")
                bench.ok("poll", on="c1", events=["in"], timeout=0.2)
                receive = bench.begin("recv", overlap=True)
                bench.blocked(receive)
                assert bench.end(receive)["data"] == "6162"
                _fill(bench, "c1")
                bench.blocked(bench.begin("close", on="c1", overlap=True))
                assert bench.ok("socket", name="other")

    _in_namespace(run)


@pytest.mark.parametrize("again", [True, False])
def test_a_hello_and_the_end_of_input_reset_what_is_being_closed(agent_c: str, again: bool) -> None:
    def run() -> None:
        with _Talk(agent_c) as bench:
            peers = _peers(bench, 4008)
            closing, behind = next(peers), next(peers)
            for name in ("c1", "c2"):
                bench.ok("setsockopt", on=name, **LINGER)
                _fill(bench, name)
            bench.blocked(bench.begin("close", on="c1", overlap=True))
            receive = bench.begin("recv", on="c2", overlap=True)
            bench.blocked(receive)
            bench.ok("close", on="c2")  # not the last descriptor: the call's own is
            behind.sendall(b"a")
            assert bench.end(receive)["data"] == "61"
            bench.ok("socket", name="other")
            assert "hello" in bench.hello() if again else bench.agent.finish() == 0
            for peer in (closing, behind):
                with pytest.raises(ConnectionResetError):
                    _drain(peer)

    _in_namespace(run)


def test_close_with_a_negative_time_to_linger_sleeps_too(agent_c: str) -> None:
    def run() -> None:
        with _Talk(agent_c) as bench:
            peers = _peers(bench, 4009)
            next(peers)
            bench.ok("setsockopt", on="c1", option="SO_LINGER", value={"onoff": True, "linger": -1})
            _fill(bench, "c1")
            bench.blocked(bench.begin("close", overlap=True))
            bench.ok("socket", name="other")

    _in_namespace(run)


def test_close_over_octets_that_nobody_read_does_not_sleep(agent_c: str) -> None:
    def run() -> None:
        with _Talk(agent_c) as bench:
            peers = _peers(bench, 4010)
            for name, flags in (("c1", 0), ("c2", socket.MSG_OOB)):
                peer = next(peers)
                bench.ok("setsockopt", on=name, **LINGER)
                peer.send(b"a", flags)
                bench.ok("poll", on=name, events=["in", "pri"], timeout=20.0)
                close = bench.begin("close", on=name, overlap=True)
                assert bench.end(close) == {"id": close, "returned": 0}
                with pytest.raises(ConnectionResetError):
                    peer.recv(1)

    _in_namespace(run)


def test_recv_waits_for_what_so_rcvlowat_asks_for(agent_c: str) -> None:
    def run() -> None:
        with _Talk(agent_c) as bench:
            peer = next(_peers(bench, 4011))
            bench.ok("setsockopt", on="c1", option="SO_RCVLOWAT", value=5)
            peer.sendall(b"abc")
            assert bench.ok("recv", size=2)["data"] == "6162"
            receive = bench.begin("recv", overlap=True)
            bench.blocked(receive)
            peer.sendall(b"defg")
            assert bench.end(receive)["data"] == "6364656667"
            receive = bench.begin("recv", overlap=True)
            bench.blocked(receive)
            peer.sendall(b"h")
            peer.shutdown(socket.SHUT_WR)
            assert bench.end(receive)["data"] == "68"

    _in_namespace(run)


def test_send_of_an_urgent_octet_sleeps_where_there_is_no_room(agent_c: str) -> None:
    def run() -> None:
        with _Talk(agent_c) as bench:
            peer = next(_peers(bench, 4012))
            _fill(bench, "c1")
            send = bench.begin("send", on="c1", payload="61", flags=["MSG_OOB"], overlap=True)
            bench.blocked(send)
            while not select.select([], [], [peer], 0)[2]:
                peer.recv(1 << 20)
            assert bench.end(send) == {"id": send, "returned": 1}

    _in_namespace(run)


def test_what_is_no_address_and_no_ip_version_is_a_fault(agent_c: str) -> None:
    def run() -> None:
        with _Talk(agent_c) as bench:
            bench.ok("socket")
            for address in ("nonsense", "", "::1", "256.0.0.1", 5):
                for call in ("bind", "connect"):
                    assert "address" in bench.ask(call, on="listener", address=address, port=4013)["fault"]
            for ip in (5, "4", None):
                assert bench.hello(ip=ip)["fault"] == "ip: expected 4 or 6"
            bench.ok("listen")

    _in_namespace(run)


def test_settings_are_given_back_at_the_end_of_input_too(agent_c: str) -> None:
    def run() -> None:
        setting = Path("/proc/sys/net/ipv4/tcp_retries2")
        before = setting.read_text()
        with _Talk(agent_c) as bench:
            bench.ok("set", name="net.ipv4.tcp_retries2", value="3")
            assert setting.read_text() == "3\n"
            assert "does not take that value" in bench.ask("set", name="net.ipv4.tcp_retries2", value="-1")["fault"]
            assert bench.agent.finish() == 0
        assert setting.read_text() == before

    _in_namespace(run)


def test_a_reader_that_goes_ends_it(agent_c: str) -> None:
    reading, writing = os.pipe()
    process = subprocess.Popen([agent_c], stdin=subprocess.PIPE, stdout=writing)
    os.close(writing)
    os.close(reading)
    assert process.stdin is not None
    process.stdin.write(b'{"hello": 1, "ip": 4, "stack": "127.0.0.1", "tester": "127.0.0.1"}\n')
    process.stdin.flush()
    try:
        assert process.wait(20) == 1
    finally:
        process.send_signal(signal.SIGKILL)
        process.stdin.close()
