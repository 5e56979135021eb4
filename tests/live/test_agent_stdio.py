"""The agent on standard input and output, in a namespace whose loopback device connects the stack with itself.

It has to pass every test that the agent of a worker's nursery passes, with the same words. Each runs twice: where the
kernel says in which call a thread sleeps, and as in a system that does not.
"""

import functools
import inspect
import json
import os
import re
import select
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import test_agent
from machine import isolated

from conform.link import netlink
from conform.link.netns import Namespace, read_sysctl
from conform.stacks.agent import hub as hub_module

AGENT = Path(hub_module.__file__).with_name("stdio.py")
HELLO = {"hello": 1, "ip": 4, "stack": "127.0.0.1", "tester": "127.0.0.1"}
#: As AGENT, on a system without /proc/thread-self/syscall, and without pidfds.
SPARSE = f"""import errno, os, sys
sys.path.insert(0, {str(AGENT.parents[3])!r})
def pidfd_open(pid, flags=0):
    raise OSError(errno.ENOSYS, "not here")
os.pidfd_open = pidfd_open
exists = os.path.exists
os.path.exists = lambda path: path != "/proc/thread-self/syscall" and exists(path)
from conform.stacks.agent.hub import main
main()
"""
COMMANDS = {"kernel": [str(AGENT)], "sparse": ["-c", SPARSE]}
systems = pytest.mark.parametrize("system", list(COMMANDS))


def ended(pid):
    """Whether it is gone; a pidfd says so a moment before the kernel takes the process out of /proc."""
    return test_agent.state(pid) in "ZX"


class Talk:
    """The agent as a child, in a namespace of its own or in *netns*."""

    def __init__(self, system="kernel", netns=None, interpreter=sys.executable):
        self.netns = netns or Namespace.create()
        with self.netns.enter(), netlink.Netlink() as link:
            link.do([netlink.link_set(1, flags=netlink.IFF_UP)])
        with self.netns.enter():
            self.process = subprocess.Popen(
                [interpreter, "-I", "-S", *COMMANDS[system]], stdin=subprocess.PIPE, stdout=subprocess.PIPE
            )
        self.rest = b""
        self.lines = []

    def send(self, message):
        line = message if isinstance(message, bytes) else json.dumps(message).encode()
        self.process.stdin.write(line + b"\n")
        self.process.stdin.flush()

    def fileno(self):
        return self.process.stdout.fileno()

    def read(self):
        """What is there, at least a line."""
        data = os.read(self.fileno(), 1 << 16)
        *lines, self.rest = (self.rest + data).split(b"\n")
        self.lines += map(json.loads, lines)
        return bool(data)

    def hear(self, seconds=10):
        end = time.monotonic() + seconds
        while not self.lines:
            assert select.select([self], [], [], max(0, end - time.monotonic()))[0], "the agent says nothing"
            assert self.read(), "the agent hung up"
        return self.lines.pop(0)

    def ask(self, message):
        self.send(message)
        return self.hear()

    def pids(self):
        """The hub's, and its children's that live."""
        children = test_agent.children(self.process.pid)
        return [self.process.pid, *(pid for pid in children if not ended(pid))]

    def close(self):
        self.process.stdin.close()
        assert self.process.wait(10) == 0
        self.process.stdout.close()


class Far:
    """A Talk with the interface of ProcessAgent."""

    def __init__(self, loop, system, netns, version, addresses, reply, blocked):
        self.loop, self.reply, self.blocked = loop, reply, blocked
        self.talk = Talk(system, netns)
        loop.add_reader(self.talk.fileno(), self.ready)
        self.talk.send(HELLO | {"ip": version, "stack": addresses[0], "tester": addresses[1]})
        self.heard = None
        self.capabilities = None
        self.timers = {}

    def request(self, id, request):
        self.talk.send({"id": id, **request})
        if "timeout" in request and request["do"] != "poll":
            when = time.monotonic() + request["timeout"]
            self.timers[id] = self.loop.call_at(when, lambda: self.end(id, {"timeout": True}))

    def ready(self):
        self.talk.read()
        while self.talk is not None and self.talk.lines:
            message = self.talk.lines.pop(0)
            if "hello" in message:
                self.capabilities = frozenset(message["capabilities"])
                continue
            id = message.pop("id")
            if message.get("blocked"):
                self.blocked(id)
            else:
                self.end(id, message)

    def end(self, id, message):
        if id in self.timers:
            self.timers.pop(id).cancel()
        elif message.get("timeout"):
            return
        self.reply(id, message)

    def close(self):
        if self.talk is not None:
            self.loop.remove_reader(self.talk.fileno())
            self.talk.close()
            self.talk = None


def far_bench(system):
    class Bench(test_agent.Bench):
        def new_agent(self, kind):
            def reply(id, reply):
                assert id not in self.replies, "one reply to each request"
                self.said.append((id, "reply"))
                self.replies[id] = reply

            addresses = test_agent.LOOPBACK[self.version]
            return Far(self.loop, system, self.netns, self.version, addresses, reply, self.blocked)

    return Bench


def of_processes():
    """The tests of test_agent that a bench runs, and arguments for each."""
    for name, test in inspect.getmembers(test_agent, inspect.isfunction):
        if not name.startswith("test_") or test.__code__.co_filename != "<string>":
            continue
        names = inspect.signature(test).parameters
        for version in (4, 6) if "version" in names else (None,):
            arguments = ({"kind": "process"} if "kind" in names else {}) | ({"version": version} if version else {})
            yield pytest.param(test, arguments, id=f"{name[5:]}{f'-ipv{version}' if version else ''}")


@systems
@pytest.mark.parametrize(("test", "arguments"), list(of_processes()))
def test_as_a_process(test, arguments, system, monkeypatch):
    monkeypatch.setattr(test_agent, "Bench", far_bench(system))
    test(**arguments)


# Of the hub itself ---------------------------------------------------------------------------------------------------
def talking(test):
    """Run *test* isolated, with a Talk to an agent that was greeted; nothing is left afterwards."""

    def inner(system):
        talk = Talk(system)
        try:
            assert talk.ask(HELLO)["hello"] == 1
            test(talk)
        finally:
            pids = talk.pids()
            talk.close()
            assert all(map(ended, pids))
            talk.netns.close()

    inner.__name__ = test.__name__

    @systems
    @functools.wraps(test)
    def run(system):
        isolated(inner)(system)

    del run.__wrapped__
    return run


def pair(talk, count=0):
    """client, connected to c1; the last id that was used."""
    for do, more in (
        ("socket", {}),
        ("setsockopt", {"on": "listener", "option": "SO_REUSEADDR", "value": True}),
        ("bind", {"port": 80}),
        ("listen", {}),
        ("socket", {"as": "client"}),
        ("connect", {"on": "client", "address": "127.0.0.1", "port": 80}),
        ("accept", {}),
    ):
        count += 1
        reply = talk.ask({"id": count, "do": do, **more})
        assert reply["id"] == count
        assert reply["returned"] == 0
    return count


@isolated
def test_capabilities():
    """What is found by trying is what the nursery's agents say of Linux, and the states beside."""
    for system in COMMANDS:
        talk = Talk(system)
        found = talk.ask(HELLO)["capabilities"]
        assert set(found) == {*hub_module.Agent.capabilities, "states"}
        talk.close()


@talking
def test_the_documents_exchange(talk):
    """docs/agent-protocol.md on one channel: a child's lines are marked there by the name before them."""
    exchange = [
        (match[1], json.loads(match[2]))
        for match in re.finditer(r"^(?:\w+)?([<>]) (\{.*\})$", test_agent.PROTOCOL.read_text(), re.MULTILINE)
    ]
    start = next(i for i, (_, message) in enumerate(exchange) if "id" in message and message["id"] == 1)
    pending = []
    for index, (direction, message) in enumerate(exchange[start:], start):
        if "hello" in message or message.get("do") == "exit":
            continue
        if direction == ">":
            talk.send(message)
            continue
        pending.append(message)
        if index + 1 < len(exchange) and exchange[index + 1][0] == "<":
            continue  # replies to calls that overlap come in any order
        while pending:
            got = talk.hear()
            fitting = [w for w in pending if w == got or (w["id"] == got["id"] == 29 and got["returned"] > 0)]
            assert fitting, (got, pending)
            pending.remove(fitting[0])
    assert talk.ask({"id": 33, "do": "exit", "status": 3, "by": "child"}) == {"id": 33, "returned": 0}


@talking
def test_processes_on_one_channel(talk):
    id = pair(talk)
    pid = talk.ask({"id": id + 1, "do": "fork", "as": "child"})["returned"]
    assert pid > 0
    assert talk.ask({"id": id + 2, "do": "fork", "as": "child"})["fault"].startswith("a fork needs a name")
    assert talk.ask({"id": id + 3, "do": "fork", "as": "grandchild", "by": "child"})["returned"] != pid
    for process in ("main", "child", "grandchild"):
        talk.send({"id": id + 4, "do": "recv", "by": process, "overlap": True})
        assert talk.hear() == {"id": id + 4, "blocked": True}
        id += 1
    sleeping = {id + 1: "main", id + 2: "child", id + 3: "grandchild"}
    id += 4
    talk.send({"id": id, "do": "kill", "process": "child", "with": "SIGTERM"})
    told = [talk.hear(), talk.hear()]
    assert told[0]["id"] == next(i for i, name in sleeping.items() if name == "child")
    assert told[0]["gone"] is True
    assert "ended before" in told[0]["fault"]
    assert told[1] == {"id": id, "returned": 0}
    assert ended(pid), "the reply comes when the process is gone"
    assert talk.ask({"id": id + 1, "do": "kill", "process": "child"}) == {
        "id": id + 1,
        "returned": -1,
        "error": "ESRCH",
    }
    assert "is gone" in talk.ask({"id": id + 2, "do": "getsockname", "by": "child"})["fault"]
    # The grandchild outlives its parent, and main.
    talk.send({"id": id + 3, "do": "exit", "status": 0})
    assert {talk.hear()["id"] for _ in range(2)} == {id + 3, next(i for i, n in sleeping.items() if n == "main")}
    sent = {"do": "send", "on": "client", "payload": "61", "by": "grandchild"}
    talk.send({"id": id + 4, **sent})
    replies = {reply["id"]: reply for reply in (talk.hear(), talk.hear())}
    assert replies.pop(id + 4) == {"id": id + 4, "returned": 1}
    assert [reply["data"] for reply in replies.values()] == ["61"]


@talking
def test_signals(talk):
    talk.ask({"id": 1, "do": "socket"})
    assert talk.ask({"id": 2, "do": "kill", "with": "SIGURG"}) == {"id": 2, "returned": 0}
    assert "unknown signal" in talk.ask({"id": 3, "do": "kill", "with": "SIGFUN"})["fault"]
    assert "no process" in talk.ask({"id": 4, "do": "kill", "process": "child"})["fault"]
    assert talk.ask({"id": 5, "do": "getsockname", "on": "listener"})["returned"] == 0


@talking
def test_a_process_that_dies_by_itself(talk):
    talk.ask({"id": 1, "do": "fork", "as": "child"})
    pid = talk.ask({"id": 2, "do": "fork", "as": "other"})["returned"]
    talk.ask({"id": 3, "do": "socket", "by": "other"})
    talk.send({"id": 4, "do": "accept", "by": "other"})
    os.kill(pid, signal.SIGKILL)
    assert talk.hear()["gone"] is True
    assert "is gone" in talk.ask({"id": 5, "do": "socket", "by": "other"})["fault"]
    assert talk.ask({"id": 6, "do": "socket", "by": "child"})["returned"] == 0
    _, main = talk.pids()
    os.kill(main, signal.SIGKILL)
    end = time.monotonic() + 5
    while not ended(main):
        assert time.monotonic() < end
    assert talk.ask(HELLO)["hello"] == 1
    assert talk.ask({"id": 7, "do": "socket"})["returned"] == 0


@talking
def test_a_hello_ends_the_trial_before(talk):
    def things():
        fds = sum(len(os.listdir(f"/proc/{pid}/fd")) for pid in talk.pids())
        with talk.netns.enter():
            connections = len(Path("/proc/self/net/tcp").read_text().splitlines()) - 1
        return len(talk.pids()), fds, connections

    before = things()
    assert before[2] == 0
    id = 0
    for trial in range(50):
        id = pair(talk, id)
        if trial % 5 == 4:
            for child in ("a", "b"):
                id += 1
                assert talk.ask({"id": id, "do": "fork", "as": child})["returned"] > 0
            talk.send({"id": id + 1, "do": "recv", "by": "b", "overlap": True})
            assert talk.hear() == {"id": id + 1, "blocked": True}
            id += 1
        if trial % 5 == 3:
            talk.send({"id": id + 1, "do": "recv", "overlap": True})
            assert talk.hear() == {"id": id + 1, "blocked": True}
            id += 1
        assert talk.ask(HELLO)["hello"] == 1
        assert "no descriptor" in talk.ask({"id": id + 1, "do": "getsockname", "on": "client"})["fault"]
        assert "no process" in talk.ask({"id": id + 2, "do": "getsockname", "by": "a"})["fault"]
        id += 2
        assert things() == before


@talking
def test_a_process_serves_again(talk):
    """A trial costs no fork, unless a call of the one before still sleeps."""
    first = talk.pids()
    pair(talk)
    talk.ask(HELLO)
    assert talk.pids() == first
    pair(talk)
    talk.send({"id": 100, "do": "recv", "overlap": True})
    assert talk.hear() == {"id": 100, "blocked": True}
    talk.ask(HELLO)
    assert talk.pids() != first
    assert len(talk.pids()) == 2


@talking
def test_states(talk):
    id = pair(talk)
    port = talk.ask({"id": id + 1, "do": "getsockname", "on": "client"})["address"]["port"]
    id += 1

    def state(here, there, wanted):
        """Read until it is *wanted*: the two ends are in one stack, and one waits for the other."""
        nonlocal id
        end = time.monotonic() + 5
        while True:
            id += 1
            reply = talk.ask({"id": id, "do": "state", "port": here, "peer": there})
            if reply["value"] == wanted or time.monotonic() > end:
                assert reply == {"id": id, "returned": 0, "value": wanted}
                return

    state(80, 0, "LISTEN")
    state(81, 0, "CLOSED")
    state(80, port, "ESTABLISHED")
    state(port, 80, "ESTABLISHED")
    id += 1
    talk.ask({"id": id, "do": "close", "on": "client"})
    state(80, port, "CLOSE-WAIT")
    state(port, 80, "FIN-WAIT-2")
    id += 1
    talk.ask({"id": id, "do": "close"})
    state(port, 80, "TIME-WAIT")
    state(80, port, "CLOSED")


@talking
def test_settings_are_given_back(talk):
    def sack():
        with talk.netns.enter():
            return read_sysctl("net.ipv4.tcp_sack").strip()

    assert sack() == "1"
    assert talk.ask({"id": 1, "do": "set", "name": "net.ipv4.tcp_sack", "value": 0}) == {
        "id": 1,
        "returned": 0,
        "value": "1",
    }
    assert sack() == "0"
    talk.ask(HELLO)
    assert sack() == "1"
    refused = talk.ask({"id": 2, "do": "set", "name": "net.ipv4.no_such_thing", "value": 0})
    assert refused == {"id": 2, "returned": -1, "error": "ENOENT"}
    for name in ("../../etc/passwd", "net.ipv4/../x", ""):
        reply = talk.ask({"id": 3, "do": "set", "name": name, "value": 0})
        assert "fault" in reply or reply["error"] == "EISDIR"


@isolated
def test_requests_that_the_hub_cannot_read():
    for line, words in (
        (b'{"hello": 2}', "version 1"),
        (b'{"id": 1, "do": "socket"}', "hello comes first"),
        (b"no json", "malformed"),
        (b"[]", "malformed"),
        (b'{"hello": 1}', "malformed"),
        (b'{"do": "socket"}', "malformed"),
    ):
        talk = Talk()
        assert words in talk.ask(line)["fault"]
        assert talk.ask(HELLO)["hello"] == 1
        talk.close()


@isolated
def test_malformed_requests_end_nothing():
    talk = Talk()
    assert "RecursionError" in talk.ask(b"[" * 100_000)["fault"]
    assert "no IP version 5" in talk.ask(HELLO | {"ip": 5})["fault"]
    assert talk.ask(HELLO)["hello"] == 1
    assert "RecursionError" in talk.ask(b"[" * 100_000)["fault"]
    id = pair(talk)
    for request, words in (
        ({"do": "recv", "size": 10**17}, "MemoryError"),
        ({"do": "recv", "size": 10**17, "overlap": True}, "MemoryError"),
        ({"do": "bind", "address": "nonsense"}, "no address"),
        ({"do": "exit", "status": 1 << 70}, "OverflowError"),
        ({"do": "recv", "timeout": 10**400}, "OverflowError"),
    ):
        id += 1
        reply = talk.ask({"id": id, **request})
        assert reply["id"] == id
        assert words in reply["fault"]
    # An exit that was refused is no exit, and is replied to once.
    assert "TypeError" in talk.ask({"id": 100, "do": "exit", "status": "x"})["fault"]
    assert talk.ask({"id": 101, "do": "getsockname"})["returned"] == 0
    assert talk.ask({"id": 102, "do": "exit", "status": 0}) == {"id": 102, "returned": 0}
    assert "is gone" in talk.ask({"id": 103, "do": "getsockname"})["fault"]
    talk.close()


@talking
def test_many_requests_at_once(talk):
    """They are heard while nobody reads the replies, as far as a pipe takes these."""
    talk.ask({"id": 0, "do": "socket", "as": "s"})
    data = b"".join(b'{"id": %d, "do": "getsockname", "on": "s"}\n' % id for id in range(1, 5001))
    os.set_blocking(talk.process.stdin.fileno(), False)
    seen = []
    while len(seen) < 5000:
        if data and select.select([], [talk.process.stdin], [], 0)[1]:
            data = data[os.write(talk.process.stdin.fileno(), data) :]
        elif not talk.lines:
            assert select.select([talk], [talk.process.stdin] if data else [], [], 10) != ([], [], []), len(seen)
            if select.select([talk], [], [], 0)[0]:
                assert talk.read()
        seen += [reply["id"] for reply in talk.lines]
        talk.lines.clear()
    assert seen == list(range(1, 5001))
    os.set_blocking(talk.process.stdin.fileno(), True)


@systems
def test_the_reply_to_hello_is_the_first_line(system):
    @isolated
    def run():
        talk = Talk(system)
        setting = {"id": 1, "do": "set", "name": "net.ipv4.tcp_sack", "value": "0"}
        for _ in range(3):
            talk.send(b"\n".join(json.dumps(m).encode() for m in (HELLO, setting, HELLO, setting)))
            assert [talk.hear().get("id") for _ in range(4)] == [None, 1, None, 1]
        talk.close()

    run()


@talking
def test_a_state_is_of_after_the_calls_before(talk):
    for trial in range(30):
        port = 100 + trial
        requests = (
            {"id": 1, "do": "socket"},
            {"id": 2, "do": "bind", "port": port},
            {"id": 3, "do": "listen"},
            {"id": 4, "do": "state", "port": port, "peer": 0},
        )
        talk.send(b"\n".join(json.dumps(each).encode() for each in requests))
        assert [talk.hear() for _ in requests][-1] == {"id": 4, "returned": 0, "value": "LISTEN"}
        talk.send(b'{"id": 5, "do": "close", "on": "listener"}\n{"id": 6, "do": "state", "port": %d, "peer": 0}' % port)
        assert talk.hear() == {"id": 5, "returned": 0}
        assert talk.hear() == {"id": 6, "returned": 0, "value": "CLOSED"}


@talking
def test_a_state_waits_for_no_call_that_sleeps(talk):
    id = pair(talk)
    for more in ({"overlap": True}, {"timeout": 0.1}, {}):
        id += 1
        talk.send({"id": id, "do": "recv", **more})
        if "overlap" in more:
            assert talk.hear() == {"id": id, "blocked": True}
        id += 1
        assert talk.ask({"id": id, "do": "state", "port": 80, "peer": 0})["value"] == "LISTEN"


@talking
def test_a_process_that_was_stopped_is_not_waited_for(talk):
    assert talk.ask({"id": 1, "do": "kill", "with": "SIGSTOP"}) == {"id": 1, "returned": 0}
    assert talk.ask(HELLO)["hello"] == 1
    assert talk.ask({"id": 2, "do": "socket"}) == {"id": 2, "returned": 0}


@isolated
def test_sleep_of_close_by_the_listeners_linger_and_of_an_urgent_send():
    talk = Talk("sparse")
    talk.ask(HELLO)

    def accepted(id):
        linger = {"on": "listener", "option": "SO_LINGER", "value": {"onoff": True, "linger": 60}}
        reuse = {"on": "listener", "option": "SO_REUSEADDR", "value": True}
        for request in (
            {"do": "socket"},
            {"do": "setsockopt", **linger},
            {"do": "setsockopt", **reuse},
            {"do": "bind", "port": 80},
            {"do": "listen"},
            {"do": "socket", "as": "client"},
            {"do": "connect", "on": "client", "address": "127.0.0.1", "port": 80},
            {"do": "accept"},
        ):
            assert talk.ask({"id": id, **request})["returned"] == 0

    accepted(50)
    full = {"do": "send", "payload": "00" * 200_000, "flags": ["MSG_DONTWAIT"]}
    while talk.ask({"id": 57, **full})["returned"] > 0:
        pass
    # An urgent octet for which there is no room waits as any other does.
    talk.send({"id": 58, "do": "send", "payload": "61", "flags": ["MSG_OOB"], "overlap": True, "on": "c1"})
    assert talk.hear() == {"id": 58, "blocked": True}
    talk.ask(HELLO)
    accepted(60)
    while talk.ask({"id": 67, **full})["returned"] > 0:
        pass
    talk.send({"id": 68, "do": "close", "overlap": True})
    assert talk.hear() == {"id": 68, "blocked": True}
    assert talk.ask({"id": 69, "do": "socket", "as": "another"}) == {"id": 69, "returned": 0}
    talk.ask(HELLO)
    talk.close()


@isolated
def test_what_processes_print_is_no_reply():
    talk = Talk()
    talk.ask(HELLO)
    assert os.readlink(f"/proc/{talk.process.pid}/fd/1") == os.readlink("/proc/self/fd/2")
    assert os.readlink(f"/proc/{talk.process.pid}/fd/0") == os.devnull
    talk.close()


@systems
def test_nothing_outlives_the_hub(system):
    @isolated
    def inner():
        talk = Talk(system)
        talk.ask(HELLO)
        pair(talk)
        child = talk.ask({"id": 20, "do": "fork", "as": "child"})["returned"]
        talk.send({"id": 21, "do": "recv", "by": "child", "overlap": True})
        talk.hear()
        pids = [*talk.pids(), child]
        talk.process.kill()
        talk.process.wait()
        end = time.monotonic() + 5
        while not all(map(ended, pids)):
            assert time.monotonic() < end
            time.sleep(0.01)

    inner()
