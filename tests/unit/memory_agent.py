"""An agent of a stack that is a few dictionaries, for the tests of ``conform agent-check``: no packet leaves it.

``python memory_agent.py [FLAW]``: with a flaw it breaks docs/agent-protocol.md in that one way.
"""

from __future__ import annotations

import json
import os
import sys
import time

FLAW = sys.argv[1] if len(sys.argv) > 1 else ""
CAPABILITIES = ["calls", "overlap", "dup", "sigpipe", "states", "shutdown-read"]
CALLS = {
    "socket", "bind", "listen", "accept", "connect", "send", "sendmsg", "recv", "recvmsg", "shutdown", "close", "poll",
    "setsockopt", "getsockopt", "getsockname", "getpeername", "set-nonblocking", "dup", "state", "set",
}  # fmt: skip
FLAGS = {"MSG_PEEK", "MSG_DONTWAIT", "MSG_NOSIGNAL", "MSG_OOB"}


class FaultError(Exception):
    """The request cannot be made."""


class CallError(Exception):
    """The call ends in this error."""


class SleepError(Exception):
    """The call would block."""


class Socket:
    def __init__(self):
        self.port = 0
        self.queue = None  # of a listener
        self.peer = None
        self.inbox = b""
        self.ended = self.shut = self.nonblocking = False
        self.names = 1


class Agent:
    def __init__(self):
        self.table, self.sleeping, self.hello = {}, [], None
        self.ephemeral = 50000
        self.settings, self.before = {"speed": "1"}, {}

    def say(self, message):
        text = json.dumps(message)
        sys.stdout.write(text + "\n")
        sys.stdout.flush()

    def hear(self, line):
        id = None
        try:
            try:
                request = json.loads(line)
                id = request.get("id")
            except (ValueError, AttributeError):
                if FLAW == "dies of garbage":
                    raise SystemExit(1) from None
                raise FaultError("malformed request") from None
            if "hello" in request:
                return self.greet(request)
            if FLAW == "faults unknown keys" and "novelty" in request:
                raise FaultError("what is novelty?")
            if request.get("do") not in CALLS or (FLAW == "no poll" and request["do"] == "poll"):
                if FLAW == "silent on unknown calls":
                    return None
                if FLAW == "errors for faults":
                    return self.say({"id": id, "returned": -1, "error": "EOPNOTSUPP"})
                raise FaultError(f"unknown call {request.get('do')!r}")
            if FLAW == "keeps ids small" and id > 2**31:
                id %= 2**31
            return self.begin(id, request)
        except FaultError as fault:
            return self.say({"id": id, "fault": str(fault)})

    def greet(self, request):
        if request["hello"] != 1 and FLAW != "any version":
            raise FaultError("this agent speaks version 1")
        if FLAW == "declines":
            raise FaultError("no such version")
        if self.hello:
            if FLAW == "one hello":
                raise FaultError("hello comes once")
            if FLAW != "remembers names":
                self.table.clear()
            self.sleeping.clear()
            if FLAW != "keeps settings":
                self.settings.update(self.before)
            self.before.clear()
        self.hello = request
        words = {"invents capabilities": [*CAPABILITIES, "telepathy"], "cannot call": [], "claims urgent": ["urgent"]}
        claimed = words.get(FLAW, CAPABILITIES)
        if FLAW == "claims urgent":
            claimed = [*CAPABILITIES, "urgent"]
        if FLAW == "chatters":
            print("stack: starting")
        return self.say({"hello": 1, "agent": "memory", "capabilities": claimed})

    def begin(self, id, request):
        try:
            reply = self.perform(request)
            if FLAW == "blocked when ready" and request["do"] == "recv" and request.get("overlap"):
                self.say({"id": id, "blocked": True})
        except SleepError:
            end = time.monotonic() + request["timeout"] if "timeout" in request else None
            if request.get("overlap") or FLAW == "blocked unasked":
                if FLAW == "holds up all":
                    time.sleep(60)
                if FLAW not in ("never says blocked", "blocked too late"):
                    self.say({"id": id, "blocked": True})
                if FLAW == "blocked twice":
                    self.say({"id": id, "blocked": True})
            self.sleeping.append((id, request, self.on(request), end))
            return
        self.reply(id, reply)

    def reply(self, id, reply):
        if FLAW == "forgets returned":
            reply.pop("returned", None)
        if FLAW == "numbers its errors" and "error" in reply:
            reply["error"] = 11
        if FLAW == "other names" and reply.get("error") == "EAGAIN":
            reply["error"] = "EWOULDBLOCK"
        self.say({"id": id, **reply})
        if FLAW == "replies twice":
            self.say({"id": id, **reply})

    def again(self):
        """Make those that slept again."""
        for each in list(self.sleeping):
            id, request, on, end = each
            try:
                reply = self.perform(request, on)
            except SleepError:
                if end is None or time.monotonic() < end:
                    continue
                reply = {"returned": 0, "value": []} if request["do"] == "poll" else {"timeout": True}
            if each in self.sleeping:
                self.sleeping.remove(each)
                self.reply(id, reply)
                if FLAW == "blocked too late" and request.get("overlap"):
                    self.say({"id": id, "blocked": True})

    def due(self):
        ends = [end for *_, end in self.sleeping if end is not None]
        return max(0.0, min(ends) - time.monotonic()) if ends else None

    def on(self, request):
        default = "listener" if request["do"] in ("bind", "listen", "accept") else "c1"
        name = request.get("on", default)
        if name not in self.table:
            raise FaultError(f"no descriptor has the name {name!r}")
        if self.table[name] is None:
            if FLAW == "faults closed names":
                raise FaultError("closed")
            raise CallError("EBADF")
        return self.table[name]

    def free(self, name):
        if self.table.get(name) is not None and FLAW != "takes taken names":
            raise FaultError(f"{name!r} is taken")
        return name

    def perform(self, request, on=None):
        do = request["do"]
        try:
            if do in ("socket", "state", "set"):
                return getattr(self, do)(request)
            unknown = [flag for flag in request.get("flags", []) if flag not in FLAGS]
            if unknown and FLAW != "takes any flag":
                raise FaultError(f"unknown flag {unknown[0]!r}")
            method = {"sendmsg": "send", "recvmsg": "recv", "set-nonblocking": "set_nonblocking"}.get(do, do)
            return getattr(self, method)(request, on or self.on(request))
        except CallError as error:
            return {"returned": -1, "error": str(error)}
        except (KeyError, ValueError, TypeError, AttributeError) as error:
            raise FaultError(f"malformed request: {error!r}") from None

    # The calls
    def socket(self, request):
        self.table[self.free(request.get("as", "listener"))] = Socket()
        return {"returned": 0}

    def bind(self, request, on):
        port = request.get("port", 0)
        if not isinstance(port, int):
            raise FaultError("port")
        if any(each and each.port == port and each.queue is not None for each in self.table.values()):
            raise CallError("EADDRINUSE")
        on.port = port
        return {"returned": 0}

    def listen(self, request, on):
        on.queue = []
        return {"returned": 0}

    def accept(self, request, on):
        if FLAW == "crashes in accept":
            os.write(2, b"assertion failed: pcb != NULL\n")
            os._exit(134)
        if not on.queue:
            raise SleepError
        self.table[self.free(request.get("as", "c1"))] = sock = on.queue.pop(0)
        address = {"address": self.hello["stack"], "port": sock.peer.port}
        return {"returned": 0, "address": [*address.values()] if FLAW == "lists addresses" else address}

    def connect(self, request, on):
        if on.peer is not None:
            return {"returned": 0}
        port = request["port"]
        if FLAW == "does not reach itself":
            raise CallError("EHOSTUNREACH")
        if FLAW == "never connects":
            raise SleepError
        for each in self.table.values():
            if each and each.port == port and each.queue is not None:
                self.ephemeral += 1
                other = Socket()
                on.port, other.port, on.peer, other.peer = self.ephemeral, port, other, on
                each.queue.append(other)
                return {"returned": 0}
        raise CallError("ECONNREFUSED")

    def send(self, request, on):
        payload = bytes.fromhex(request["payload"])
        if on.peer is None:
            raise CallError("ENOTCONN")
        if on.shut:
            quiet = "MSG_NOSIGNAL" in request.get("flags", []) and FLAW != "signals always"
            return {"returned": -1, "error": "EPIPE"} | (
                {} if quiet or FLAW == "no signal" else {"signals": ["SIGPIPE"]}
            )
        on.peer.inbox += payload[: 1 << 17] if FLAW == "cuts payloads" else payload
        return {"returned": len(payload)}

    def recv(self, request, on):
        size, flags = request.get("size", 65536), request.get("flags", [])
        if on.peer is None:
            raise CallError("ENOTCONN")
        if not on.inbox and not on.ended:
            if on.nonblocking or "MSG_DONTWAIT" in flags:
                raise CallError("EAGAIN")
            raise SleepError
        if FLAW == "no end" and not on.inbox:
            raise CallError("ENOTCONN")
        data = on.inbox[:size]
        if "MSG_PEEK" not in flags or FLAW == "peeking takes":
            on.inbox = on.inbox[size:]
        text = data.decode("latin-1") if FLAW == "plain text" else data.hex()
        return {"returned": len(data), "data": text} | ({"msg_flags": []} if request["do"] == "recvmsg" else {})

    def shutdown(self, request, on):
        if request["how"] not in ("rd", "wr", "rdwr"):
            raise FaultError("how")
        if on.peer is None:
            raise CallError("ENOTCONN")
        if request["how"] != "rd":
            on.shut = on.peer.ended = True
        return {"returned": 0}

    def close(self, request, on):
        self.table[request.get("on", "c1")] = None
        on.names -= 1
        if on.names == 0 and on.peer is not None:
            on.peer.ended = True
        return {"returned": 0}

    def poll(self, request, on):
        found = [name for name in request["events"] if (on.inbox or on.ended) and name == "in"]
        if not found and request.get("timeout") != 0 and FLAW != "polls at once":
            raise SleepError
        return {"returned": len(found), "value": found}

    def setsockopt(self, request, on):
        if request["option"] == "SO_RCVTIMEO" and not isinstance(request["value"], dict):
            raise FaultError("SO_RCVTIMEO")
        return {"returned": 0}

    def getsockopt(self, request, on):
        if not request["option"].startswith(("SO_", "TCP_", "IP")) or request["option"] == "SO_ODD":
            raise FaultError("unknown option")
        if request["option"] == "SO_REUSEADDR":
            return {"returned": 0, "value": 1 if FLAW == "numbers for truth" else True}
        raise CallError("ENOPROTOOPT")

    def getsockname(self, request, on):
        return {"returned": 0, "address": {"address": self.hello["stack"], "port": on.port}}

    def getpeername(self, request, on):
        peer = on if FLAW == "peer is self" else on.peer
        return {"returned": 0, "address": {"address": self.hello["stack"], "port": peer.port}}

    def set_nonblocking(self, request, on):
        on.nonblocking = request["value"] and FLAW != "always blocks"
        return {"returned": 0}

    def dup(self, request, on):
        if FLAW == "dup is a word":
            raise FaultError("unheard of")
        self.table[self.free(request["as"])] = on
        on.names += 1
        return {"returned": 0}

    def state(self, request):
        port, peer = request["port"], request["peer"]
        for each in self.table.values():
            if each and each.port == port and (each.peer.port if each.peer else 0) == peer:
                word = "LISTEN" if each.queue is not None else "ESTABLISHED"
                return {"returned": 0, "value": word.lower() if FLAW == "spells states its way" else word}
        return {"returned": 0, "value": "CLOSED"}

    def set(self, request):
        if FLAW == "sets anything":
            return {"returned": 0}
        name, was = request["name"], self.settings.get(request["name"])
        if was is None:
            raise FaultError("unknown setting")
        if FLAW == "gives back the last":
            self.before[name] = was
        self.before.setdefault(name, was)
        self.settings[name] = request["value"]
        return {"returned": 0, "value": int(was) if FLAW == "numbers settings" else was}


def main():
    import select

    agent, rest = Agent(), b""
    while True:
        if not select.select([0], [], [], agent.due())[0]:
            agent.again()
            continue
        data = os.read(0, 1 << 16)
        if not data:
            time.sleep(60 if FLAW == "outlives its input" else 0)
            os._exit(1 if FLAW == "ends badly" else 0)
        *lines, rest = (rest + data).split(b"\n")
        if FLAW == "a read is a line" and agent.hello:
            lines, rest = [data.strip()], b""
        for line in lines:
            agent.hear(line)
            agent.again()


if __name__ == "__main__":
    main()
