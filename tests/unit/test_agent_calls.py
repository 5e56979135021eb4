"""The agent's calls on loopback sockets: requests in, replies out. No privileges."""

import errno
import json
import os
import select
import signal
import socket
import struct
import subprocess
import sys
import time
from pathlib import Path

import pytest

from conform.case import model
from conform.case.vocabulary import ERRNOS, MSG_FLAGS, SOCKET_OPTIONS
from conform.stacks.agent import calls as agent_calls
from conform.stacks.agent import process
from conform.stacks.agent.calls import Calls, errno_name, tcp_info

ROOT = Path(__file__).parents[2]


@pytest.fixture(params=[True, False], ids=["blocking", "nonblocking"])
def calls(request):
    made = Calls(4, "127.0.0.1", "127.0.0.1", blocking=request.param)
    yield made
    made.drop()


def ok(calls, do, **arguments):
    reply = calls.execute({"do": do, **arguments})
    assert "fault" not in reply, reply
    assert "error" not in reply, reply
    return reply


@pytest.fixture
def pair(calls):
    """c1, accepted, and client, connected to it."""
    ok(calls, "socket")
    ok(calls, "bind", address="stack", port="any")
    ok(calls, "listen")
    port = ok(calls, "getsockname", on="listener")["address"]["port"]
    ok(calls, "socket", **{"as": "client"})
    reply = calls.execute({"do": "connect", "on": "client", "port": port})
    assert reply.get("error") in (None, "EINPROGRESS")
    deadline = time.monotonic() + 5
    while (reply := calls.execute({"do": "accept"})).get("error") == "EAGAIN":
        assert time.monotonic() < deadline
    assert reply["returned"] == 0
    return calls


def arrives(calls, do, **arguments):
    """The reply once there is something: loopback delivers before the sender returns, but need not."""
    deadline = time.monotonic() + 5
    while (reply := calls.execute({"do": do, **arguments})).get("error") == "EAGAIN":
        assert time.monotonic() < deadline
    return reply


def test_the_vocabulary_is_covered():
    assert set(agent_calls.OPTIONS) == set(SOCKET_OPTIONS)
    assert set(MSG_FLAGS) <= set(agent_calls.MSG_FLAGS)
    made_elsewhere = {"socket", "fork", "kill", "exit"}
    assert set(agent_calls._METHODS) == set(model.CALL_NAMES) - made_elsewhere
    assert set(agent_calls.POLL_EVENTS) == set(model.PollEvent.__args__)


def test_option_shapes_are_the_vocabularys():
    shapes = {"u32": "int", "linger": dict, "timeval": dict}
    for name, (_, _, shape) in agent_calls.OPTIONS.items():
        wanted = SOCKET_OPTIONS[name]
        assert shapes.get(shape, shape) == (dict if isinstance(wanted, dict) else wanted), name


@pytest.mark.parametrize("name", [name for name in ERRNOS if name != "EWOULDBLOCK"])
def test_errno_names(name):
    assert errno_name(getattr(errno, name)) == name


def test_an_errno_without_a_name():
    assert errno_name(9999) == "E9999"


def test_data_goes_through(pair):
    assert ok(pair, "send", on="client", payload="616263")["returned"] == 3
    assert arrives(pair, "recv", flags=["MSG_PEEK"]) == {"returned": 3, "data": "616263"}
    assert ok(pair, "recvmsg", size=2) == {"returned": 2, "data": "6162", "msg_flags": []}
    assert ok(pair, "recv", flags=["MSG_TRUNC"]) == {"returned": 1}
    assert ok(pair, "sendmsg", payload="58")["returned"] == 1
    assert arrives(pair, "recv", on="client") == {"returned": 1, "data": "58"}


def test_urgent_octet(pair):
    ok(pair, "send", on="client", payload="21", flags=["MSG_OOB"])
    assert arrives(pair, "recvmsg", size=1, flags=["MSG_OOB"]) == {
        "returned": 1,
        "data": "21",
        "msg_flags": ["MSG_OOB"],
    }


def test_end_of_data(pair):
    ok(pair, "shutdown", on="client", how="wr")
    assert arrives(pair, "recv") == {"returned": 0, "data": ""}


def test_sigpipe_is_seen_and_raised_for_nobody(pair):
    before = signal.pthread_sigmask(signal.SIG_BLOCK, ())
    ok(pair, "shutdown", on="client", how="wr")
    broken = {"returned": -1, "error": "EPIPE"}
    for do in ("send", "sendmsg"):
        request = {"do": do, "on": "client", "payload": "00"}
        assert pair.execute(request) == broken | {"signals": ["SIGPIPE"]}
        assert pair.execute(request | {"flags": ["MSG_NOSIGNAL"]}) == broken
    assert signal.pthread_sigmask(signal.SIG_BLOCK, ()) == before
    assert signal.SIGPIPE not in signal.sigpending()


def test_reset_is_an_error_once(pair):
    ok(pair, "setsockopt", on="client", option="SO_LINGER", value={"onoff": True, "linger": 0})
    ok(pair, "close", on="client")
    assert arrives(pair, "recv") == {"returned": -1, "error": "ECONNRESET"}
    assert ok(pair, "recv") == {"returned": 0, "data": ""}
    assert pair.execute({"do": "getpeername", "on": "c1"})["error"] == "ENOTCONN"


def test_names(pair):
    assert ok(pair, "getsockname", on="client")["address"] == ok(pair, "getpeername", on="c1")["address"]


def test_poll(pair):
    assert ok(pair, "poll", events=["in", "out"]) == {"returned": 1, "value": ["out"]}
    assert ok(pair, "poll", events=["in"], timeout=0) == {"returned": 0, "value": []}
    ok(pair, "send", on="client", payload="00")
    arrives(pair, "recv", flags=["MSG_PEEK"])
    assert ok(pair, "poll", events=["in"]) == {"returned": 1, "value": ["in"]}


def test_nonblocking(pair):
    ok(pair, "set-nonblocking")
    assert pair.execute({"do": "recv"}) == {"returned": -1, "error": "EAGAIN"}
    if pair.blocking:
        ok(pair, "dup", **{"as": "copy"})
        assert pair.execute({"do": "recv", "on": "copy"})["error"] == "EAGAIN", "dup must not change O_NONBLOCK"
        ok(pair, "set-nonblocking", on="copy", value=False)
        assert pair.table["c1"].sock.fileno() != pair.table["copy"].sock.fileno()
        ok(pair, "send", on="client", payload="00")
        assert ok(pair, "recv")["returned"] == 1


def test_a_duplicate_keeps_the_connection(pair):
    ok(pair, "dup", on="client", **{"as": "copy"})
    ok(pair, "close", on="client")
    assert ok(pair, "send", on="copy", payload="00")["returned"] == 1
    assert arrives(pair, "recv")["data"] == "00"


def test_closed_is_known_unknown_is_not(pair):
    ok(pair, "close")
    for do, more in (("recv", {}), ("close", {}), ("poll", {"events": ["in"]}), ("send", {"payload": "00"})):
        assert pair.execute({"do": do, **more}) == {"returned": -1, "error": "EBADF"}
    assert pair.execute({"do": "recv", "on": "nobody"}) == {"fault": "no descriptor has the name 'nobody'"}
    ok(pair, "socket", **{"as": "c1"})


@pytest.mark.parametrize(
    ("request_", "words"),
    [
        ({"do": "jump"}, "unknown call 'jump'"),
        ({}, "unknown call None"),
        ({"do": ["recv"]}, "unknown call"),
        ({"do": "recv", "on": ["c1"]}, "no descriptor"),
        ({"do": "recv", "flags": ["MSG_OOPS"]}, "unknown flag 'MSG_OOPS'"),
        ({"do": "recv", "size": "many"}, "malformed"),
        ({"do": "recv", "size": -1}, "malformed"),
        ({"do": "recv", "size": 10**17, "flags": ["MSG_DONTWAIT"]}, "malformed"),
        ({"do": "recv", "size": 10**30}, "malformed"),
        ({"do": "bind", "address": "nonsense", "port": 0}, "no address"),
        ({"do": "bind", "address": "::1", "port": 0}, "no address"),
        ({"do": "connect", "on": "client", "address": "localhost", "port": 1}, "no address"),
        ({"do": "connect", "on": "client", "address": ["127.0.0.1"], "port": 1}, "malformed"),
        ({"do": "socket", "as": 5}, "a name is text"),
        ({"do": "send"}, "malformed"),
        ({"do": "send", "payload": "xyz"}, "malformed"),
        ({"do": "shutdown", "how": "up"}, "malformed"),
        ({"do": "connect", "port": 99999}, "malformed"),
        ({"do": "setsockopt", "option": "SO_FUN", "value": 1}, "unknown socket option 'SO_FUN'"),
        ({"do": "setsockopt", "option": "TCP_NODELAY", "value": "yes"}, "takes a number"),
        ({"do": "setsockopt", "option": "SO_LINGER", "value": 5}, "SO_LINGER takes"),
        ({"do": "setsockopt", "option": "SO_LINGER", "value": {"onoff": 1}}, "SO_LINGER takes"),
        ({"do": "setsockopt", "option": "TCP_CONGESTION", "value": 5}, "expected text"),
        ({"do": "setsockopt", "option": "TCP_NODELAY"}, "malformed"),
        ({"do": "poll", "events": ["sun"]}, "unknown event 'sun'"),
        ({"do": "dup"}, "malformed"),
        ({"do": "dup", "as": "client"}, "belongs to a descriptor that is open"),
        ({"do": "socket", "as": "c1"}, "belongs to a descriptor that is open"),
        ({"do": "accept"}, "belongs to a descriptor that is open"),
    ],
)
def test_faults_of_the_request(pair, request_, words):
    reply = pair.execute(request_)
    assert set(reply) == {"fault"}
    assert words in reply["fault"]


def test_a_close_that_would_sleep_needs_a_process(pair):
    ok(pair, "setsockopt", option="SO_LINGER", value={"onoff": True, "linger": 1})
    reply = pair.execute({"do": "close"})
    assert ("fault" in reply) is not pair.blocking
    if not pair.blocking:
        ok(pair, "setsockopt", option="SO_LINGER", value={"onoff": False, "linger": 1})
        ok(pair, "close")


def test_a_time_to_linger_is_inherited_from_the_listener(calls):
    ok(calls, "socket")
    ok(calls, "setsockopt", on="listener", option="SO_LINGER", value={"onoff": True, "linger": 1})
    ok(calls, "bind", address="stack", port=0)
    ok(calls, "listen")
    port = ok(calls, "getsockname", on="listener")["address"]["port"]
    with socket.create_connection(("127.0.0.1", port), timeout=5):
        arrives(calls, "accept")
        assert calls.table["c1"].file.linger == 1
        assert ("fault" in calls.execute({"do": "close"})) is not calls.blocking


def test_an_unknown_option_is_the_systems_affair(pair):
    assert pair.execute({"do": "setsockopt", "option": "SO_SNDLOWAT", "value": 5})["error"] == "ENOPROTOOPT"
    assert pair.execute({"do": "setsockopt", "option": "IPV6_TCLASS", "value": 5})["error"] == "ENOPROTOOPT"


def test_refused(calls):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        ok(calls, "socket", **{"as": "c1"})
        if calls.blocking:
            port = taken.getsockname()[1]
            assert calls.execute({"do": "connect", "port": port})["error"] == "ECONNREFUSED"
        ok(calls, "socket")
        assert calls.execute({"do": "bind", "port": taken.getsockname()[1]})["error"] == "EADDRINUSE"


def test_drop_resets(pair):
    other = pair.table.pop("client").sock
    pair.drop()
    other.setblocking(True)
    with other, pytest.raises(ConnectionResetError):
        other.recv(1)


def test_an_agent_whose_channel_is_closed_with_replies_unread_resets_its_connections():
    ours, theirs = socket.socketpair()
    pid = os.fork()
    if pid == 0:
        try:
            ours.close()
            process.Agent(theirs).run()
        finally:
            os._exit(1)
    theirs.close()
    lines = ours.makefile("rb")

    def ask(**request):
        ours.sendall(json.dumps(request).encode() + b"\n")
        return json.loads(lines.readline())

    ask(hello=1, ip=4, stack="127.0.0.1", tester="127.0.0.1")
    assert ask(id=1, do="socket")["returned"] == 0
    assert ask(id=2, do="bind", address="127.0.0.1", port=0)["returned"] == 0
    assert ask(id=3, do="listen")["returned"] == 0
    port = ask(id=4, do="getsockname", on="listener")["address"]["port"]
    with socket.create_connection(("127.0.0.1", port), timeout=10) as peer:
        assert ask(id=5, do="accept")["returned"] == 0
        ours.sendall(b'{"id": 6, "do": "getsockname"}\n')
        assert select.select([ours], [], [], 10)[0]
        lines.close()
        ours.close()
        with pytest.raises(ConnectionResetError):
            peer.recv(1)
    assert os.waitpid(pid, 0)[1] == 0


def test_a_trials_calls_leave_nothing_to_the_collector():
    import gc
    import weakref

    gc.disable()
    try:
        calls = Calls(4, "127.0.0.1", "127.0.0.1")
        ok(calls, "socket")
        descriptor = weakref.ref(calls.table["listener"].sock)
        calls.drop()
        del calls
        assert descriptor() is None
    finally:
        gc.enable()


def test_tcp_info_by_field():
    head = bytes([1, 0, 2, 0, 0, 7, 0x7A, 0b101])
    data = head + struct.pack("=24I4Q2I", *range(100, 124), 1, 2, 3, 1 << 40, 5, 6)
    found = tcp_info(data + b"\0\0")  # a kernel that ends in the middle of a field
    assert found["tcpi_state"] == 1
    assert found["tcpi_retransmits"] == 2
    assert (found["tcpi_snd_wscale"], found["tcpi_rcv_wscale"]) == (10, 7)
    assert (found["tcpi_delivery_rate_app_limited"], found["tcpi_fastopen_client_fail"]) == (1, 2)
    assert (found["tcpi_rto"], found["tcpi_total_retrans"]) == (100, 123)
    assert found["tcpi_bytes_received"] == 1 << 40
    assert (found["tcpi_segs_out"], found["tcpi_segs_in"]) == (5, 6)
    assert list(found)[-1] == "tcpi_segs_in"


def test_what_runs_in_agents_is_lean():
    """No site-packages and nothing heavy: its start is part of a trial's cost."""
    code = """if True:
        import sys
        sys.path.insert(0, sys.argv[1])
        import conform.stacks.agent.process
        heavy = {"pydantic", "scapy", "yaml", "asyncio", "logging", "subprocess", "typing_extensions", "dataclasses"}
        print(*sorted(heavy & set(sys.modules)), *sorted(m for m in sys.modules if m.startswith("conform")))"""
    command = [sys.executable, "-I", "-S", "-c", code, str(ROOT)]
    told = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    assert told.split() == [
        "conform",
        "conform.stacks",
        "conform.stacks.agent",
        "conform.stacks.agent.calls",
        "conform.stacks.agent.process",
    ]
