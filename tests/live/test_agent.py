"""Both agents against this machine's kernel: a namespace whose loopback device connects the stack with itself.

Each test runs in a child process (``isolated``), as root or in a user namespace; nothing outlives it.
"""

import json
import os
import re
import select
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
from machine import isolated

from conform.case.model import Case
from conform.case.vocabulary import SOCKET_OPTIONS
from conform.link import netlink
from conform.link.netns import Namespace, read_sysctl, write_sysctl
from conform.run.loop import Loop
from conform.stacks.description import load
from conform.stacks.linux import (
    InlineAgent,
    Nursery,
    ProcessAgent,
    SockDiag,
    congestion_controls,
    lacking,
    needs_process,
)

LOOPBACK = {4: ("127.0.0.1", "127.0.0.1"), 6: ("::1", "::1")}
PROTOCOL = Path(__file__).parents[2] / "docs/agent-protocol.md"
OK = {"returned": 0}

agents = pytest.mark.parametrize("kind", ["inline", "process"])
versions = pytest.mark.parametrize("version", [4, 6])


class Bench:
    """A namespace, an agent in it, and what the agent said."""

    def __init__(self, kind="process", version=4):
        self.loop = Loop()
        self.netns = Namespace.create()
        with self.netns.enter(), netlink.Netlink() as link:
            link.do([netlink.link_set(1, flags=netlink.IFF_UP)])
        self.nursery = Nursery(self.loop)
        self.version = version
        self.said = []  # ids of blocked and of replies, in order
        self.replies = {}
        self.broken = []
        self.count = 0
        self.agent = self.new_agent(kind)

    def new_agent(self, kind):
        def reply(id, reply):
            assert id not in self.replies, "one reply to each request"
            self.said.append((id, "reply"))
            self.replies[id] = reply

        rest = (self.version, LOOPBACK[self.version], reply, self.blocked, self.broken.append)
        if kind == "inline":
            return InlineAgent(self.loop, self.netns, *rest)
        return ProcessAgent(self.loop, self.nursery, self.netns, *rest)

    def blocked(self, id):
        assert id not in self.replies, "blocked never comes after the reply"
        self.said.append((id, "blocked"))

    def until(self, done, seconds=10):
        end = time.monotonic() + seconds
        while not done():
            assert time.monotonic() < end, (self.said, self.replies, self.broken)
            self.loop.turn(0.1)

    def start(self, do, overlap=True, **arguments):
        """Begin a call; with *overlap* until it sleeps or ends."""
        if "name" in arguments:
            arguments["as"] = arguments.pop("name")
        self.count += 1
        id = self.count
        self.agent.request(id, {"do": do, "timeout": 10, **arguments, **({"overlap": True} if overlap else {})})
        if overlap:
            self.until(lambda: any(each[0] == id for each in self.said))
        return id

    def asleep(self, id):
        return (id, "blocked") in self.said and id not in self.replies

    def end(self, id):
        self.until(lambda: id in self.replies)
        return self.replies[id]

    def call(self, do, **arguments):
        return self.end(self.start(do, overlap=False, **arguments))

    def ok(self, do, **arguments):
        reply = self.call(do, **arguments)
        assert "fault" not in reply, reply
        assert "error" not in reply, reply
        return reply

    def listen(self, backlog=16, buffer=None):
        self.ok("socket")
        if buffer is not None:  # a window's scale is told in the SYN
            self.ok("setsockopt", on="listener", option="SO_RCVBUF", value=buffer)
        self.ok("bind", port=80)
        self.ok("listen", backlog=backlog)

    def pair(self, buffer=None):
        """client, connected to c1."""
        self.listen(buffer=buffer)
        self.ok("socket", name="client")
        if buffer is not None:
            self.ok("setsockopt", on="client", option="SO_SNDBUF", value=buffer)
        self.ok("connect", on="client", port=80)
        self.ok("accept")
        return self

    def leave(self):
        """All is gone afterwards, agents too."""
        self.agent.close()
        with SockDiag(self.netns, LOOPBACK) as diag:
            diag.destroy_all()
        self.nursery.close()
        self.netns.close()
        self.loop.close()


def bench(test):
    """Run *test* isolated, with a Bench of its *kind* and *version*."""

    def inner(**arguments):
        made = Bench(arguments.get("kind", "process"), arguments.get("version", 4))
        try:
            test(made, **arguments)
            assert made.broken == []
        finally:
            made.leave()

    inner.__name__ = test.__name__
    names = [name for name in ("kind", "version") if name in test.__code__.co_varnames[: test.__code__.co_argcount]]
    namespace = {"run": isolated(inner)}
    exec(f"def test({', '.join(names)}):\n    run({', '.join(f'{n}={n}' for n in names)})", namespace)
    wrapped = namespace["test"]
    wrapped.__name__ = test.__name__
    wrapped.__doc__ = test.__doc__
    return wrapped


# Calls ---------------------------------------------------------------------------------------------------------------
@agents
@versions
@bench
def test_a_whole_connection(made, kind, version):
    address = LOOPBACK[version][0]
    made.listen()
    accept = made.start("accept")
    assert made.asleep(accept)
    made.ok("socket", name="client")
    made.ok("bind", on="client", address="stack", port=40000)
    made.ok("connect", on="client", address=address, port=80)
    assert made.end(accept) == {"returned": 0, "address": {"address": address, "port": 40000}}
    assert made.ok("getsockname", on="c1")["address"] == {"address": address, "port": 80}
    assert made.ok("getpeername", on="client")["address"] == {"address": address, "port": 80}
    receive = made.start("recv")
    assert made.asleep(receive)
    assert made.ok("send", on="client", payload="616263") == {"returned": 3}
    assert made.end(receive) == {"returned": 3, "data": "616263"}
    made.ok("shutdown", on="client", how="wr")
    assert made.ok("recvmsg") == {"returned": 0, "data": "", "msg_flags": []}
    assert made.ok("poll", events=["in", "rdhup"])["value"] == ["in", "rdhup"]
    made.ok("close")
    assert made.ok("recv", on="client") == {"returned": 0, "data": ""}
    made.ok("close", on="client")
    made.ok("close", on="listener")


_VALUES = {
    "SO_LINGER": [{"onoff": True, "linger": 0}, {"onoff": False, "linger": 0}],
    "SO_RCVTIMEO": [{"sec": 1, "usec": 500000}],
    "SO_SNDTIMEO": [{"sec": 2, "usec": 0}],
    "SO_RCVBUF": [8192],
    "SO_SNDBUF": [8192],
    "SO_RCVLOWAT": [7],
    "IP_TOS": [0x10],
    "IP_TTL": [9],
    "IPV6_TCLASS": [0x10],
    "IPV6_UNICAST_HOPS": [9],
    "TCP_MAXSEG": [600],
    "TCP_LINGER2": [3],
    "TCP_USER_TIMEOUT": [3000],
    "TCP_KEEPIDLE": [5],
    "TCP_KEEPINTVL": [6],
    "TCP_KEEPCNT": [7],
    "TCP_SYNCNT": [3],
    "TCP_DEFER_ACCEPT": [3],
    "TCP_FASTOPEN": [5],
    "TCP_FASTOPEN_KEY": ["000102030405060708090a0b0c0d0e0f"],
    "TCP_WINDOW_CLAMP": [5000],
    "TCP_CONGESTION": ["reno"],
    "TCP_NOTSENT_LOWAT": [4096, 0xFFFFFFFF],
}
_READ_ONLY = {"SO_ERROR": 0, "SO_TYPE": 1, "SO_ACCEPTCONN": False}
#: Linux keeps twice what it is asked for (socket(7)).
_DOUBLED = {"SO_RCVBUF", "SO_SNDBUF"}


@agents
@versions
@bench
def test_every_socket_option_is_set_and_read_back(made, kind, version):
    made.ok("socket", name="c1")
    other = {4: {"IPV6_TCLASS", "IPV6_UNICAST_HOPS"}, 6: set()}[version]
    seen = set()
    for option, shape in SOCKET_OPTIONS.items():
        if option in other or option.startswith(("TCP_REPAIR", "TCP_QUEUE")):
            continue
        seen.add(option)
        if option in _READ_ONLY:
            assert made.ok("getsockopt", option=option)["value"] == _READ_ONLY[option], option
        elif option == "SO_SNDLOWAT":
            assert made.call("setsockopt", option=option, value=1)["error"] == "ENOPROTOOPT"
            assert made.ok("getsockopt", option=option)["value"] == 1
        elif option == "TCP_INFO":
            assert made.ok("getsockopt", option=option)["value"]["tcpi_state"] == 7
        else:
            for value in [True, False] if shape == "bool" else _VALUES[option]:
                assert made.ok("setsockopt", option=option, value=value) == OK
                got = made.ok("getsockopt", option=option)["value"]
                if option == "TCP_QUICKACK":
                    continue  # not kept by a socket without a connection
                if option == "TCP_DEFER_ACCEPT":  # kept as a number of retransmissions
                    assert value <= got <= 2 * value + 1
                    continue
                assert got == (2 * value if option in _DOUBLED else value), option
    assert seen | other == {o for o in SOCKET_OPTIONS if not o.startswith(("TCP_REPAIR", "TCP_QUEUE"))}


@agents
@bench
def test_sequence_numbers_by_repair(made, kind):
    made.ok("socket", name="c1")
    made.ok("setsockopt", option="TCP_REPAIR", value=1)
    for queue in (1, 2):  # TCP_RECV_QUEUE, TCP_SEND_QUEUE
        made.ok("setsockopt", option="TCP_REPAIR_QUEUE", value=queue)
        assert made.ok("getsockopt", option="TCP_REPAIR_QUEUE")["value"] == queue
        made.ok("setsockopt", option="TCP_QUEUE_SEQ", value=0xFFFFFF00 + queue)
        assert made.ok("getsockopt", option="TCP_QUEUE_SEQ")["value"] == 0xFFFFFF00 + queue
    assert made.ok("getsockopt", option="TCP_REPAIR")["value"] == 1
    made.ok("setsockopt", option="TCP_REPAIR", value=0)


@agents
@bench
def test_tcp_info_of_a_connection(made, kind):
    made.pair()
    made.ok("send", on="client", payload="00" * 1000)
    info = made.ok("getsockopt", on="client", option="TCP_INFO")["value"]
    assert info["tcpi_state"] == 1
    assert 0 < info["tcpi_snd_mss"] <= 65535
    assert info["tcpi_bytes_sent"] == 1000
    assert info["tcpi_data_segs_out"] >= 1


@agents
@bench
def test_errors_by_name(made, kind):
    made.listen()
    made.ok("socket", name="c1")
    assert made.call("recv")["error"] == "ENOTCONN"
    assert made.call("send", payload="00") == {"returned": -1, "error": "EPIPE", "signals": ["SIGPIPE"]}
    assert made.call("connect", port=81)["error"] == "ECONNREFUSED"
    assert made.call("bind", address="192.0.2.99", port=80)["error"] == "EADDRNOTAVAIL"
    assert made.call("connect", address="192.0.2.99", port=80)["error"] == "ENETUNREACH"
    made.ok("socket", name="second")
    assert made.call("bind", on="second", port=80)["error"] == "EADDRINUSE"
    assert made.call("accept", on="second", name="c9")["error"] == "EINVAL"
    made.ok("connect", on="second", port=80)
    assert made.call("connect", on="second", port=80)["error"] == "EISCONN"
    assert made.call("listen", on="second")["error"] == "EINVAL"
    assert made.call("recv", on="second", flags=["MSG_OOB"])["error"] == "EINVAL"
    assert made.call("setsockopt", on="second", option="TCP_MAXSEG", value=1)["error"] == "EINVAL"
    made.ok("close")
    assert made.call("recv")["error"] == "EBADF"
    assert made.call("recv", on="nobody") == {"fault": "no descriptor has the name 'nobody'"}
    assert "unknown call" in made.call("jump")["fault"]


@agents
@bench
def test_reset_then_sigpipe(made, kind):
    made.pair()
    made.ok("setsockopt", on="client", option="SO_LINGER", value={"onoff": True, "linger": 0})
    made.ok("close", on="client")
    assert made.call("send", payload="00") == {"returned": -1, "error": "ECONNRESET"}
    assert made.call("send", payload="00") == {"returned": -1, "error": "EPIPE", "signals": ["SIGPIPE"]}
    assert made.call("sendmsg", payload="00", flags=["MSG_NOSIGNAL"]) == {"returned": -1, "error": "EPIPE"}
    assert made.ok("recv") == {"returned": 0, "data": ""}


@agents
@bench
def test_urgent_data(made, kind):
    made.pair()
    wait = made.start("poll", events=["pri"])
    assert made.asleep(wait)
    made.ok("send", on="client", payload="2121", flags=["MSG_OOB"])
    assert made.end(wait) == {"returned": 1, "value": ["pri"]}
    assert made.ok("recvmsg", size=1, flags=["MSG_OOB"])["msg_flags"] == ["MSG_OOB"]
    assert made.call("recv", size=1, flags=["MSG_OOB"])["error"] == "EINVAL"
    assert made.ok("recv", size=9) == {"returned": 1, "data": "21"}


@agents
@bench
def test_dup_shares_the_connection(made, kind):
    made.pair()
    made.ok("dup", on="client", name="copy")
    made.ok("close", on="client")
    made.ok("set-nonblocking")
    assert made.call("recv")["error"] == "EAGAIN", "no FIN while a duplicate is open"
    made.ok("set-nonblocking", value=False)
    made.ok("shutdown", on="copy", how="wr")
    assert made.ok("recv") == {"returned": 0, "data": ""}
    made.ok("close", on="copy")
    assert made.call("getsockname", on="copy")["error"] == "EBADF"


@agents
@bench
def test_nonblocking_by_descriptor_and_by_call(made, kind):
    made.pair()
    made.ok("dup", name="copy")
    assert made.call("recv", flags=["MSG_DONTWAIT"])["error"] == "EAGAIN"
    made.ok("set-nonblocking", on="copy")
    assert made.call("recv")["error"] == "EAGAIN", "O_NONBLOCK is the open file's, not the descriptor's"
    made.ok("set-nonblocking", on="listener")
    assert made.call("accept", name="c2")["error"] == "EAGAIN"
    made.ok("socket", name="c3")
    made.ok("connect", on="c3", port=80)
    made.ok("accept", name="c2")
    asleep = made.start("recv", on="c2")
    assert made.asleep(asleep), "what is accepted from a non-blocking listener blocks (accept(2))"


# Sleep ---------------------------------------------------------------------------------------------------------------
@agents
@bench
def test_a_call_gives_up_at_its_timeout(made, kind):
    made.pair()
    begun = time.monotonic()
    assert made.call("recv", timeout=0.05) == {"timeout": True}
    assert made.call("accept", name="c2", timeout=0.05) == {"timeout": True}
    assert 0.1 <= time.monotonic() - begun < 5
    assert made.call("poll", events=["in"], timeout=0.05) == {"returned": 0, "value": []}
    assert made.call("poll", events=["in"], timeout=0) == {"returned": 0, "value": []}
    # The call given up may still sleep, and take what comes; the agent goes on.
    made.ok("getsockname", on="c1")


@agents
@bench
def test_connect_sleeps_until_it_may_not(made, kind):
    made.listen(backlog=0)
    made.ok("socket", name="one")
    made.ok("connect", on="one", port=80)
    made.ok("socket", name="two")
    sleeping = made.start("connect", on="two", port=80)  # the accept queue is full: its SYN is dropped
    assert made.asleep(sleeping)
    made.ok("close", on="listener")
    assert made.end(sleeping)["error"] == "ECONNREFUSED", "the SYN that is sent again finds no listener"
    made.listen()
    made.ok("connect", on="two", port=80)


@agents
@bench
def test_nonblocking_connect(made, kind):
    made.listen()
    made.ok("socket", name="c9")
    made.ok("set-nonblocking", on="c9")
    assert made.call("connect", on="c9", port=80)["error"] in ("EINPROGRESS", None)
    assert made.ok("poll", on="c9", events=["out"])["value"] == ["out"]
    assert made.ok("getsockopt", on="c9", option="SO_ERROR")["value"] == 0
    made.ok("socket", name="refused")
    made.ok("set-nonblocking", on="refused")
    assert made.call("connect", on="refused", port=81)["error"] in ("EINPROGRESS", "ECONNREFUSED")


@agents
@bench
def test_send_sleeps_until_there_is_room(made, kind):
    made.pair(buffer=4096)
    size = 1 << 18
    sending = made.start("send", on="client", payload="61" * size)
    assert made.asleep(sending)
    got = 0
    while got < size:
        got += made.ok("recv")["returned"]
    assert made.end(sending) == {"returned": size}


@agents
@bench
def test_what_went_before_an_error_is_returned(made, kind):
    made.pair(buffer=4096)
    sending = made.start("send", on="client", payload="61" * (1 << 18))
    assert made.asleep(sending)
    made.ok("close")  # unread data: a reset
    reply = made.end(sending)
    assert 0 < reply["returned"] < 1 << 18
    assert "error" not in reply
    assert made.call("send", on="client", payload="00")["error"] in ("ECONNRESET", "EPIPE")


@bench
def test_close_sleeps_with_linger(made):
    made.pair(buffer=4096)
    made.ok("setsockopt", on="client", option="SO_LINGER", value={"onoff": True, "linger": 30})
    sending = made.start("send", on="client", payload="61" * 65536, flags=["MSG_DONTWAIT"])
    assert made.end(sending)["returned"] > 0
    closing = made.start("close", on="client")
    assert made.asleep(closing)
    while made.ok("recv")["returned"]:
        pass
    # The FIN is acknowledged with what is read; the peer's own is not waited for.
    assert made.end(closing) == OK


@agents
@bench
def test_several_sleep_at_once_and_wake_in_order(made, kind):
    made.pair()
    accepts = [made.start("accept", name=f"a{n}") for n in range(3)]
    receive = made.start("recv")
    polled = made.start("poll", on="client", events=["in"])
    assert all(made.asleep(each) for each in [*accepts, receive, polled])
    for n in range(3):
        made.ok("socket", name=f"k{n}")
        made.ok("connect", on=f"k{n}", port=80)
        assert made.end(accepts[n])["returned"] == 0
        assert not [later for later in accepts[n + 1 :] if later in made.replies]
    made.ok("send", on="client", payload="00")
    assert made.end(receive)["data"] == "00"
    assert made.asleep(polled)
    made.ok("send", on="c1", payload="00")
    assert made.end(polled)["value"] == ["in"]


@agents
@bench
def test_closing_a_name_does_not_end_a_call_under_way(made, kind):
    made.pair()
    receive = made.start("recv")
    made.ok("close")
    assert made.call("recv")["error"] == "EBADF"
    made.ok("send", on="client", payload="6161")
    assert made.end(receive) == {"returned": 2, "data": "6161"}
    # With the call the last reference went, and with it the connection.
    assert made.ok("recv", on="client") == {"returned": 0, "data": ""}


@agents
@bench
def test_a_call_that_does_not_sleep_is_not_said_to(made, kind):
    made.pair()
    for n in range(50):
        made.ok("send", on="client", payload="00")
        receive = made.start("recv")
        assert made.end(receive)["returned"] == 1
        assert made.said[-1] == (receive, "reply")
        assert (receive, "blocked") not in made.said, n


@agents
@bench
def test_agents_that_are_left_asleep_let_go(made, kind):
    made.pair()
    made.start("recv")
    made.start("accept", name="c2")
    made.agent.close()
    with SockDiag(made.netns, LOOPBACK) as diag:
        made.until(lambda: not list(diag._dump(4)), 5)  # resets: no orphan, no TIME-WAIT


# What only real blocking calls can do --------------------------------------------------------------------------------
@bench
def test_receive_timeout_and_low_water(made):
    made.pair()
    made.ok("setsockopt", option="SO_RCVTIMEO", value={"sec": 0, "usec": 50000})
    assert made.call("recv")["error"] == "EAGAIN"
    made.ok("setsockopt", option="SO_RCVTIMEO", value={"sec": 0, "usec": 0})
    made.ok("setsockopt", option="SO_RCVLOWAT", value=3)
    receive = made.start("recv")
    made.ok("send", on="client", payload="6161")
    assert made.asleep(receive)
    made.ok("send", on="client", payload="61")
    assert made.end(receive)["data"] == "616161"


@bench
def test_wait_for_all(made):
    made.pair()
    made.ok("send", on="client", payload="6161")
    receive = made.start("recv", size=4, flags=["MSG_WAITALL"])
    assert made.asleep(receive)
    made.ok("send", on="client", payload="6262")
    assert made.end(receive)["data"] == "61616262"


@bench
def test_payloads_larger_than_the_channels_buffers(made):
    made.pair()
    size = 1 << 21
    payload = os.urandom(size)
    sending = made.start("send", on="client", payload=payload.hex(), overlap=False)
    got = b""
    while len(got) < size:
        got += bytes.fromhex(made.ok("recv", size=size)["data"])
    assert got == payload
    assert made.end(sending) == {"returned": size}


# Processes -----------------------------------------------------------------------------------------------------------
@bench
def test_fork_shares_the_connection(made):
    made.pair()
    assert made.ok("fork", name="child")["returned"] > 0
    made.ok("close", by="child")
    made.ok("send", payload="61")
    assert made.ok("recv", on="client", by="child") == {"returned": 1, "data": "61"}
    made.ok("close")  # the last descriptor of it: the child had closed its own
    assert made.ok("recv", on="client")["returned"] == 0
    made.ok("close", on="client")
    made.ok("fork", name="grandchild", by="child")
    made.ok("getsockname", on="client", by="grandchild")
    made.ok("exit", by="child", status=3)
    assert "is gone" in made.call("getsockname", on="client", by="child")["fault"]
    made.ok("getsockname", on="client", by="grandchild")


@bench
def test_no_fin_while_a_child_holds_the_connection(made):
    made.pair()
    made.ok("fork", name="child")
    made.ok("kill")  # main
    made.ok("set-nonblocking", on="client", by="child")
    assert made.call("recv", on="client", by="child")["error"] == "EAGAIN"
    made.ok("send", payload="61", by="child")
    assert made.ok("recv", on="client", by="child")["data"] == "61"
    assert "is gone" in made.call("close")["fault"]


@bench
def test_processes_sleep_each_for_itself(made):
    made.pair()
    made.ok("fork", name="child")
    here, there = made.start("recv"), made.start("recv", by="child", on="client")
    assert made.asleep(here)
    assert made.asleep(there)
    made.ok("send", payload="62", by="child")
    assert made.end(there)["data"] == "62"
    assert made.asleep(here)
    made.ok("kill", process="child")
    made.ok("send", on="client", payload="61")
    assert made.end(here)["data"] == "61"


@bench
def test_kill_with_unread_data_resets(made):
    made.listen()
    made.ok("socket", name="client")
    made.ok("connect", on="client", port=80)
    made.ok("fork", name="child")
    made.ok("accept", by="child")
    made.ok("send", on="client", payload="61")
    made.ok("kill", process="child")
    assert made.call("recv", on="client")["error"] == "ECONNRESET"


@bench
def test_kill_without_unread_data_ends_the_stream(made):
    made.listen()
    made.ok("socket", name="client")
    made.ok("connect", on="client", port=80)
    made.ok("fork", name="child")
    made.ok("accept", by="child")
    sleeping = made.start("recv", by="child")
    made.ok("kill", process="child", **{"with": "SIGTERM"})
    assert made.end(sleeping)["gone"] is True
    assert made.ok("recv", on="client") == {"returned": 0, "data": ""}
    assert made.call("kill", process="child") == {"returned": -1, "error": "ESRCH"}


@bench
def test_signals_that_do_not_end_a_process(made):
    made.ok("socket")
    made.ok("kill", **{"with": "SIGURG"})
    made.ok("getsockname", on="listener")
    assert "unknown signal" in made.call("kill", **{"with": "SIGFUN"})["fault"]


@bench
def test_process_names(made):
    assert "no process" in made.call("socket", by="child")["fault"]
    assert "no process" in made.call("kill", process="child")["fault"]
    assert "needs a name" in made.call("fork", name="main")["fault"]
    assert "needs a name" in made.call("fork")["fault"]
    made.ok("exit")
    assert "is gone" in made.call("socket")["fault"]


@agents
@bench
def test_inline_has_no_processes(made, kind):
    if kind == "inline":
        made.ok("socket", name="c1")
        for do in ("fork", "kill", "exit"):
            assert "unknown call" in made.call(do)["fault"]


# Deaths --------------------------------------------------------------------------------------------------------------
def gone(pids):
    return not any(Path(f"/proc/{pid}/stat").exists() and state(pid) != "Z" for pid in pids)


def state(pid):
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(") ")[2][0]
    except OSError:
        return "Z"


def children(pid):
    found = []
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            parent = int(path.read_text().rpartition(") ")[2].split()[1])
        except OSError:
            continue
        if parent == pid:
            found.append(int(path.parent.name))
    return found


def test_a_nursery_whose_worker_is_gone_ends_without_a_word():
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    code = f"from conform.stacks.agent.process import nursery; nursery({theirs.fileno()})"
    command = [sys.executable, "-c", code]
    process = subprocess.Popen(command, pass_fds=[theirs.fileno()], stderr=subprocess.PIPE)
    ours.close()
    theirs.close()
    assert process.communicate(timeout=10) == (None, b"")
    assert process.returncode == 0


@isolated
def test_nursery_death_breaks_agents_and_is_mended():
    made = Bench()
    made.ok("socket")
    agents = children(made.nursery.pid)
    assert len(agents) == 1
    made.start("fork", overlap=False, name="child")
    made.until(lambda: len(made.replies) == 2)
    agents += children(agents[0])
    assert len(agents) == 2
    os.kill(made.nursery.pid, signal.SIGKILL)
    made.until(lambda: made.broken)
    assert "died" in made.broken[0]
    made.until(lambda: gone(agents))
    made.broken.clear()
    made.agent = made.new_agent("process")
    made.ok("socket")
    made.leave()
    assert made.broken == []


@isolated
def test_an_agent_that_dies_breaks_the_trial():
    made = Bench()
    made.ok("socket")
    (agent,) = children(made.nursery.pid)
    os.kill(agent, signal.SIGKILL)
    made.until(lambda: made.broken)
    assert made.broken == ["the agent's process 'main' died"]
    made.leave()


@isolated
def test_close_ends_every_process():
    made = Bench()
    made.pair()
    made.ok("fork", name="child")
    made.start("recv", by="child")
    (agent,) = children(made.nursery.pid)
    (child,) = children(agent)
    made.agent.close()
    made.agent.close()
    made.until(lambda: gone([agent, child]))
    assert made.broken == []
    made.leave()


@isolated
def test_nothing_outlives_a_worker_that_is_killed():
    told, tell = os.pipe()
    worker = os.fork()
    if worker == 0:
        made = Bench()
        made.pair()
        made.ok("fork", name="child")
        made.start("recv", by="child")
        (agent,) = children(made.nursery.pid)
        os.write(tell, json.dumps([made.nursery.pid, agent, *children(agent)]).encode())
        os.kill(os.getpid(), signal.SIGKILL)
    pids = json.loads(os.read(told, 1000))
    os.waitpid(worker, 0)
    assert len(pids) == 3
    end = time.monotonic() + 5
    while not gone(pids):
        assert time.monotonic() < end
        os.sched_yield()


@isolated
def test_a_namespace_that_cannot_be_entered():
    made = Bench()
    made.agent.close()
    with open("/dev/null") as file:

        class Wrong:
            fd = file.fileno()

        right, made.netns = made.netns, Wrong()
        made.agent = made.new_agent("process")
        made.until(lambda: made.broken)
        assert "cannot enter" in made.broken[0]
        made.netns = right
    made.leave()


@isolated
def test_agents_do_not_leak_descriptors_of_the_worker():
    made = Bench()
    for _ in range(30):
        made.ok("socket")
        made.agent.close()
        made.agent = made.new_agent("process")
    made.ok("socket")
    before = len(os.listdir("/proc/self/fd"))
    made.agent.close()
    made.agent = made.new_agent("process")
    made.ok("socket")
    assert len(os.listdir("/proc/self/fd")) == before
    (agent,) = [pid for pid in children(made.nursery.pid) if state(pid) != "Z"][-1:]
    # Standard ones, the control socket, the socket made.
    assert len(os.listdir(f"/proc/{agent}/fd")) <= 6
    made.leave()


# Choice, availability, documents -------------------------------------------------------------------------------------
def case(*steps):
    return Case.model_validate({"title": "A case for an agent", "covers": ["x"], "steps": list(steps)})


@pytest.mark.parametrize(
    ("steps", "wanted"),
    [
        ([{"call": "accept"}, {"call": {"do": "send", "payload": "x"}}, {"call": "close"}], False),
        ([{"start": {"do": "accept", "as": "a"}}, {"blocked": "a"}], False),
        ([{"start": {"do": "connect", "as": "a"}}], False),
        ([{"call": {"do": "setsockopt", "option": "SO_LINGER", "value": {"onoff": True, "linger": 0}}}], False),
        ([{"call": {"do": "setsockopt", "option": "TCP_NODELAY", "value": True}}], False),
        ([{"call": {"do": "setsockopt", "option": "SO_LINGER", "value": {"onoff": True, "linger": 1}}}], True),
        ([{"call": {"do": "setsockopt", "option": "SO_RCVTIMEO", "value": {"sec": 1, "usec": 0}}}], True),
        ([{"start": {"do": "send", "payload": "x", "as": "a"}}], True),
        ([{"start": {"do": "close", "as": "a"}}], True),
        ([{"call": {"do": "fork", "as": "child"}}], True),
        ([{"call": "kill"}], True),
        ([{"call": "exit"}], True),
        ([{"call": {"do": "close", "by": "child"}}], True),
        ([{"call": {"do": "recv", "flags": ["MSG_WAITALL"]}}], True),
        ([{"repeat": {"times": 2, "steps": [{"call": "exit"}]}}], True),
        ([{"one_of": [{"name": c, "steps": [{"silence": "now"}, {"call": c}]} for c in ("close", "kill")]}], True),
    ],
)  # fmt: skip
def test_needs_process(steps, wanted):
    assert needs_process(case(*steps)) is wanted
    assert needs_process({"steps": [], "recipe": steps}) is wanted


@isolated
def test_congestion_controls_of_a_new_namespace():
    space = Namespace.create()
    allowed = congestion_controls(space)
    assert "reno" in allowed
    for name in ("reno", "cubic"):
        with space.enter():
            try:
                write_sysctl("net.ipv4.tcp_congestion_control", name)
                possible = True
            except OSError:
                possible = False
        assert possible is (name in allowed) is (name not in lacking(space))
    space.close()


@isolated
def test_every_setting_of_linux_exists_and_takes_its_values():
    linux = load("linux")
    space = Namespace.create()
    linux = linux.without(lacking(space))
    tried = 0
    for name, mechanism in linux.settings.items():
        values = list(mechanism.values)
        if mechanism.takes == "count":
            values += list(mechanism.range or (1, 100))
        elif mechanism.takes == "duration":
            values += ["2s"]
        elif mechanism.takes == "capability":
            values += sorted(congestion_controls(space) & linux.capabilities)
        for value in values:
            resolved = linux.resolve({name: value}, {})
            if mechanism.sysctl is None:
                continue
            written = resolved.sysctls[mechanism.sysctl]
            with space.enter():
                write_sysctl(mechanism.sysctl, written)
                assert read_sysctl(mechanism.sysctl).split() == written.split(), name
            tried += 1
    assert tried > 30
    # What a trial says of one thing must not change another namespace.
    other = Namespace.create()
    with other.enter():
        assert read_sysctl("net.ipv4.tcp_syn_retries") != "127"
    space.close()
    other.close()


@isolated
def test_units_of_settings():
    """Seconds and milliseconds are what the description says: an orphan's FIN-WAIT-2 of one second ends after one."""
    made = Bench("inline")
    resolved = load("linux").resolve({"fin-wait-2-timeout": "1s"}, {})
    with made.netns.enter():
        write_sysctl("net.ipv4.tcp_fin_timeout", resolved.sysctls["net.ipv4.tcp_fin_timeout"])
    made.pair()
    port = made.ok("getsockname", on="client")["address"]["port"]
    made.ok("close", on="client")
    diag = SockDiag(made.netns, {4: ("127.0.0.1", "127.0.0.1")})
    made.until(lambda: diag.state(4, port, 80)[0] == "FIN-WAIT-2")
    begun = time.monotonic()
    made.until(lambda: diag.state(4, port, 80)[0] == "CLOSED", 5)
    assert 0.5 < time.monotonic() - begun < 3
    diag.close()
    made.leave()


@isolated
def test_the_documents_exchange():
    """docs/agent-protocol.md, line by line, over the channel itself."""
    made = Bench()
    channels = {}
    ours, theirs = socket.socketpair()
    with theirs:
        made.nursery.spawn(made.netns.fd, theirs.fileno(), lambda pidfd, reason: os.close(pidfd))
    channels["main"] = ours
    pending = {"main": [], "child": []}
    arrived = {"main": [], "child": []}
    rest = {"main": b"", "child": b""}
    exchange = [
        (match[1] or "main", match[2], json.loads(match[3]))
        for match in re.finditer(r"^(?:(\w+))?([<>]) (\{.*\})$", PROTOCOL.read_text(), re.MULTILINE)
    ]
    assert len(exchange) > 60

    def read(name):
        end = time.monotonic() + 10
        while not arrived[name]:
            assert select.select([channels[name]], [], [], end - time.monotonic())[0], (name, pending)
            data, descriptors, _, _ = socket.recv_fds(channels[name], 1 << 16, 2)
            assert data, "the agent hung up"
            if descriptors:
                channels["child"] = socket.socket(fileno=descriptors[0])
                os.close(descriptors[1])
            *lines, rest[name] = (rest[name] + data).split(b"\n")
            arrived[name] += map(json.loads, lines)
        return arrived[name].pop(0)

    def same(got, wanted):
        if wanted.get("id") == 29:
            wanted = wanted | {"returned": got["returned"]}
        return got == wanted

    for index, (name, direction, message) in enumerate(exchange):
        if direction == ">":
            channels[name].sendall(json.dumps(message).encode() + b"\n")
            continue
        pending[name].append(message)
        following = exchange[index + 1] if index + 1 < len(exchange) else None
        if following is not None and following[1] == "<" and following[0] == name:
            continue  # replies to calls that overlap come in any order
        while pending[name]:
            got = read(name)
            fitting = [wanted for wanted in pending[name] if same(got, wanted)]
            assert fitting, (got, pending[name])
            pending[name].remove(fitting[0])
    assert channels["child"].recv(1) == b"", "exit is told by the channel's end"
    for channel in channels.values():
        channel.close()
    made.leave()


@isolated
def test_requests_that_an_agent_cannot_read():
    made = Bench()
    for line, words in (
        ('{"hello": 2}', "version 1"),
        ('{"id": 1, "do": "socket"}', "hello comes first"),
        ("no json", "malformed"),
        ("[]", "malformed"),
        ('{"hello": 1}', "malformed"),
    ):
        ours, theirs = socket.socketpair()
        with theirs:
            made.nursery.spawn(made.netns.fd, theirs.fileno(), lambda pidfd, reason: os.close(pidfd))
        ours.sendall(line.encode() + b"\n")
        assert words in json.loads(ours.recv(4096))["fault"]
        ours.close()
    made.leave()
