"""Socket calls by name: one request of the agent protocol (docs/agent-protocol.md) in, one reply out.

The standard library alone: this is loaded into lean processes, whose start is part of a trial's cost.
"""

from __future__ import annotations

import errno
import os
import select
import signal
import socket
import struct
from typing import Any

Request = dict[str, Any]
Reply = dict[str, Any]

#: The protocol's version, told in hello.
PROTOCOL = 1

#: Calls that can put their caller to sleep (``close`` does with SO_LINGER and a time).
SLEEPERS = frozenset({"accept", "connect", "send", "sendmsg", "recv", "recvmsg", "close", "poll"})

# Names that two errors share on Linux, as the case format spells them.
_ERRNO_NAMES = dict(errno.errorcode) | {errno.EAGAIN: "EAGAIN", errno.EOPNOTSUPP: "EOPNOTSUPP"}

_MSG_NAMES = ("MSG_OOB", "MSG_PEEK", "MSG_DONTWAIT", "MSG_WAITALL", "MSG_NOSIGNAL", "MSG_TRUNC", "MSG_CTRUNC",
              "MSG_EOR", "MSG_ERRQUEUE", "MSG_MORE", "MSG_FASTOPEN")  # fmt: skip
MSG_FLAGS: dict[str, int] = {name: int(getattr(socket, name)) for name in _MSG_NAMES if hasattr(socket, name)}
MSG_FLAGS.setdefault("MSG_FASTOPEN", 0x20000000)

POLL_EVENTS = {"in": select.POLLIN, "pri": select.POLLPRI, "out": select.POLLOUT, "err": select.POLLERR,
               "hup": select.POLLHUP, "rdhup": 0x2000}  # fmt: skip
_HOW = {"rd": socket.SHUT_RD, "wr": socket.SHUT_WR, "rdwr": socket.SHUT_RDWR}

_SOL, _TCP, _IP, _IP6 = socket.SOL_SOCKET, socket.IPPROTO_TCP, socket.IPPROTO_IP, socket.IPPROTO_IPV6
#: Options: level, number, shape of the value. Numbers that Python's socket lacks are those of <linux/tcp.h>.
OPTIONS: dict[str, tuple[int, int, str]] = {
    "SO_LINGER": (_SOL, socket.SO_LINGER, "linger"),
    "SO_REUSEADDR": (_SOL, socket.SO_REUSEADDR, "bool"),
    "SO_REUSEPORT": (_SOL, socket.SO_REUSEPORT, "bool"),
    "SO_KEEPALIVE": (_SOL, socket.SO_KEEPALIVE, "bool"),
    "SO_OOBINLINE": (_SOL, socket.SO_OOBINLINE, "bool"),
    "SO_RCVBUF": (_SOL, socket.SO_RCVBUF, "int"),
    "SO_SNDBUF": (_SOL, socket.SO_SNDBUF, "int"),
    "SO_RCVLOWAT": (_SOL, socket.SO_RCVLOWAT, "int"),
    "SO_SNDLOWAT": (_SOL, socket.SO_SNDLOWAT, "int"),
    "SO_RCVTIMEO": (_SOL, socket.SO_RCVTIMEO, "timeval"),
    "SO_SNDTIMEO": (_SOL, socket.SO_SNDTIMEO, "timeval"),
    "SO_ERROR": (_SOL, socket.SO_ERROR, "errno"),
    "SO_TYPE": (_SOL, socket.SO_TYPE, "int"),
    "SO_ACCEPTCONN": (_SOL, socket.SO_ACCEPTCONN, "bool"),
    "IP_TOS": (_IP, socket.IP_TOS, "int"),
    "IP_TTL": (_IP, socket.IP_TTL, "int"),
    "IPV6_TCLASS": (_IP6, socket.IPV6_TCLASS, "int"),
    "IPV6_UNICAST_HOPS": (_IP6, socket.IPV6_UNICAST_HOPS, "int"),
    "TCP_NODELAY": (_TCP, 1, "bool"),
    "TCP_MAXSEG": (_TCP, 2, "int"),
    "TCP_CORK": (_TCP, 3, "bool"),
    "TCP_KEEPIDLE": (_TCP, 4, "int"),
    "TCP_KEEPINTVL": (_TCP, 5, "int"),
    "TCP_KEEPCNT": (_TCP, 6, "int"),
    "TCP_SYNCNT": (_TCP, 7, "int"),
    "TCP_LINGER2": (_TCP, 8, "int"),
    "TCP_DEFER_ACCEPT": (_TCP, 9, "int"),
    "TCP_WINDOW_CLAMP": (_TCP, 10, "int"),
    "TCP_INFO": (_TCP, 11, "fields"),
    "TCP_QUICKACK": (_TCP, 12, "bool"),
    "TCP_CONGESTION": (_TCP, 13, "text"),
    "TCP_USER_TIMEOUT": (_TCP, 18, "int"),
    "TCP_REPAIR": (_TCP, 19, "int"),
    "TCP_REPAIR_QUEUE": (_TCP, 20, "int"),
    "TCP_QUEUE_SEQ": (_TCP, 21, "u32"),
    "TCP_FASTOPEN": (_TCP, 23, "int"),
    "TCP_NOTSENT_LOWAT": (_TCP, 25, "u32"),
    "TCP_FASTOPEN_CONNECT": (_TCP, 30, "bool"),
    "TCP_FASTOPEN_KEY": (_TCP, 33, "hex"),
    "TCP_FASTOPEN_NO_COOKIE": (_TCP, 34, "bool"),
}

# struct tcp_info of <linux/tcp.h>, as (name, format); the kernel may give less of it, or more. Bit fields: "bits".
_INFO: tuple[tuple[str, str], ...] = (
    *((name, "B") for name in ("state", "ca_state", "retransmits", "probes", "backoff", "options", "bits", "bits2")),
    *((name, "I") for name in (
        "rto", "ato", "snd_mss", "rcv_mss", "unacked", "sacked", "lost", "retrans", "fackets", "last_data_sent",
        "last_ack_sent", "last_data_recv", "last_ack_recv", "pmtu", "rcv_ssthresh", "rtt", "rttvar", "snd_ssthresh",
        "snd_cwnd", "advmss", "reordering", "rcv_rtt", "rcv_space", "total_retrans")),
    *((name, "Q") for name in ("pacing_rate", "max_pacing_rate", "bytes_acked", "bytes_received")),
    *((name, "I") for name in (
        "segs_out", "segs_in", "notsent_bytes", "min_rtt", "data_segs_in", "data_segs_out")),
    *((name, "Q") for name in ("delivery_rate", "busy_time", "rwnd_limited", "sndbuf_limited")),
    *((name, "I") for name in ("delivered", "delivered_ce")),
    *((name, "Q") for name in ("bytes_sent", "bytes_retrans")),
    *((name, "I") for name in ("dsack_dups", "reord_seen", "rcv_ooopack", "snd_wnd", "rcv_wnd", "rehash")),
    *((name, "H") for name in ("total_rto", "total_rto_recoveries")),
    ("total_rto_time", "I"),
)  # fmt: skip

_TIMEVAL = struct.Struct("@ll")
_LINGER = struct.Struct("@ii")
#: What a socket is given before it is dropped, so that dropping it resets the connection and leaves no orphan.
LINGER_ZERO = _LINGER.pack(1, 0)
_ONLY_SIGPIPE = (signal.SIGPIPE,)


#: What is raised for a request of the wrong shape: also numbers and sizes that are too large, and JSON too deep.
MALFORMED = (KeyError, TypeError, ValueError, AttributeError, OverflowError, MemoryError, RecursionError, struct.error)


class RequestError(Exception):
    """A request that cannot be made: an unknown name, a value of the wrong shape. No errno of the stack's."""


class OpenFile:
    """What descriptors made by dup share: whether the case asked for no blocking, and for how long close sleeps."""

    __slots__ = ("linger", "nonblocking")

    def __init__(self) -> None:
        self.nonblocking = False
        self.linger = 0


class Descriptor:
    """A socket under one of its names."""

    __slots__ = ("file", "sock")

    def __init__(self, sock: socket.socket, file: OpenFile) -> None:
        self.sock = sock
        self.file = file

    def duplicate(self) -> Descriptor:
        """Another descriptor of the same open file (dup(2)). Raises OSError."""
        # Not socket.dup(): that sets the new object's timeout, which changes O_NONBLOCK, which both share.
        sock = self.sock
        return Descriptor(socket.socket(sock.family, socket.SOCK_STREAM, sock.proto, os.dup(sock.fileno())), self.file)


def errno_name(number: int) -> str:
    """``EPIPE`` for 32 (errno(3)); ``E32`` for a number without a name."""
    return _ERRNO_NAMES.get(number, f"E{number}")


def tcp_info(data: bytes) -> dict[str, int]:
    """*data*, a struct tcp_info (<linux/tcp.h>), by field; fields that the kernel did not give are left out."""
    fields: dict[str, int] = {}
    at = 0
    for name, code in _INFO:
        size = struct.calcsize("=" + code)
        at += -at % size
        if at + size > len(data):
            break
        (value,) = struct.unpack_from("=" + code, data, at)
        at += size
        if name == "bits":
            fields["tcpi_snd_wscale"], fields["tcpi_rcv_wscale"] = value & 15, value >> 4
        elif name == "bits2":
            fields["tcpi_delivery_rate_app_limited"], fields["tcpi_fastopen_client_fail"] = value & 1, value >> 1 & 3
        else:
            fields["tcpi_" + name] = value
    return fields


class Calls:
    """Executes requests on a table of named descriptors.

    *ip* is 4 or 6 and decides the family of sockets; *stack* and *tester* are the trial's addresses. With *blocking*
    the calls sleep as the system's do; without, sockets are O_NONBLOCK underneath whatever the case asked for, and
    whoever executes deals with EAGAIN.

    Not to be subclassed for other stacks: they speak the protocol.
    """

    def __init__(self, ip: int, stack: str, tester: str, blocking: bool = True) -> None:
        self.family = socket.AF_INET if ip == 4 else socket.AF_INET6
        self.names = {"stack": stack, "tester": tester, "any": "0.0.0.0" if ip == 4 else "::"}
        self.blocking = blocking
        #: Names to descriptors; None once closed.
        self.table: dict[str, Descriptor | None] = {}

    def execute(self, request: Request) -> Reply:
        """The reply, less its id, to *request*. Raises nothing: what goes wrong is in the reply."""
        try:
            return self.perform(request, self.find(request))
        except OSError as error:
            return failure(error)
        except RequestError as fault:
            return {"fault": str(fault)}

    def find(self, request: Request) -> Descriptor | None:
        """The descriptor that *request* is made on, None for a call that makes one.

        Raises RequestError for a name never given to a descriptor, OSError (EBADF) for one that was closed.
        """
        do = request.get("do")
        if do == "socket":
            return None
        if not isinstance(do, str) or do not in _METHODS:
            raise RequestError(f"unknown call {do!r}")
        name = request.get("on", "listener" if do in ("bind", "listen", "accept") else "c1")
        try:
            found = self.table[name]
        except (KeyError, TypeError):
            raise RequestError(f"no descriptor has the name {name!r}") from None
        if found is None:
            raise OSError(errno.EBADF, "closed by this process")
        return found

    def perform(self, request: Request, on: Descriptor | None) -> Reply:
        """As :meth:`execute`, on a descriptor already found. Raises RequestError for a request that makes no sense."""
        try:
            if on is None:
                return self._socket(request)
            return _METHODS[request["do"]](self, request, on)
        except OSError as error:
            return failure(error)
        except MALFORMED as error:
            raise RequestError(f"malformed request: {type(error).__name__}: {error}") from None

    def drop(self) -> None:
        """Let go of every descriptor at once, connections by reset (SO_LINGER of zero), so that no orphan remains."""
        for found in self.table.values():
            if found is not None:
                abandon(found.sock)
        self.table.clear()

    # The calls -------------------------------------------------------------------------------------------------------
    def _socket(self, request: Request) -> Reply:
        name = self._free(request.get("as") or "listener")
        kind = socket.SOCK_STREAM if self.blocking else socket.SOCK_STREAM | socket.SOCK_NONBLOCK
        self.table[name] = Descriptor(socket.socket(self.family, kind), OpenFile())
        return {"returned": 0}

    def _free(self, name: Any) -> str:
        if not isinstance(name, str):
            raise RequestError(f"a name is text, not {name!r}")
        if self.table.get(name) is not None:
            raise RequestError(f"the name {name!r} belongs to a descriptor that is open")
        return name

    def _bind(self, request: Request, on: Descriptor) -> Reply:
        address = self._address(request.get("address") or "any")
        port = request.get("port")
        on.sock.bind((address, 0 if port in (None, "any") else port))
        return {"returned": 0}

    def _address(self, text: str) -> str:
        """An address of the trial's family. Raises RequestError for a text that is none: a name is not looked up."""
        address = self.names.get(text, text)
        try:
            socket.inet_pton(self.family, address)
        except OSError:
            raise RequestError(f"{text!r} is no address of the trial's IP version") from None
        return address

    def _listen(self, request: Request, on: Descriptor) -> Reply:
        on.sock.listen(request.get("backlog", 16))
        return {"returned": 0}

    def _accept(self, request: Request, on: Descriptor) -> Reply:
        name = self._free(request.get("as") or "c1")
        sock, peer = on.sock.accept()
        if not self.blocking:
            os.set_blocking(sock.fileno(), False)
        if self.table.get(name) is not None:  # another call took the name while this one slept
            abandon(sock)
            self._free(name)
        file = OpenFile()
        # Linux hands the listener's on.
        onoff, linger = _LINGER.unpack(sock.getsockopt(_SOL, socket.SO_LINGER, _LINGER.size))
        file.linger = linger if onoff else 0
        self.table[name] = Descriptor(sock, file)
        return {"returned": 0, "address": {"address": peer[0], "port": peer[1]}}

    def _connect(self, request: Request, on: Descriptor) -> Reply:
        on.sock.connect((self._address(request.get("address") or "tester"), request["port"]))
        return {"returned": 0}

    def _send(self, request: Request, on: Descriptor) -> Reply:
        payload = bytes.fromhex(request["payload"])
        flags = message_flags(request)
        send = _sendmsg if request["do"] == "sendmsg" else socket.socket.send
        # SIGPIPE goes to the thread that wrote. Blocked, it waits there to be seen, though Python ignores it.
        before = signal.pthread_sigmask(signal.SIG_BLOCK, _ONLY_SIGPIPE)
        try:
            try:
                reply: Reply = {"returned": send(on.sock, payload, flags)}
            except OSError as error:
                reply = failure(error)
            if signal.sigtimedwait(_ONLY_SIGPIPE, 0) is not None:
                reply["signals"] = ["SIGPIPE"]
        finally:
            if signal.SIGPIPE not in before:
                signal.pthread_sigmask(signal.SIG_UNBLOCK, _ONLY_SIGPIPE)
        return reply

    def _recv(self, request: Request, on: Descriptor) -> Reply:
        flags = message_flags(request)
        data = on.sock.recv(request.get("size", 65536), flags)
        if flags & socket.MSG_TRUNC:  # TCP then discards the octets: nothing was copied (tcp(7))
            return {"returned": len(data)}
        return {"returned": len(data), "data": data.hex()}

    def _recvmsg(self, request: Request, on: Descriptor) -> Reply:
        flags = message_flags(request)
        data, _, found, _ = on.sock.recvmsg(request.get("size", 65536), 0, flags)
        reply: Reply = {"returned": len(data), "msg_flags": [n for n, bit in MSG_FLAGS.items() if found & bit]}
        if not flags & socket.MSG_TRUNC:
            reply["data"] = data.hex()
        return reply

    def _shutdown(self, request: Request, on: Descriptor) -> Reply:
        on.sock.shutdown(_HOW[request["how"]])
        return {"returned": 0}

    def _close(self, request: Request, on: Descriptor) -> Reply:
        if on.file.linger and not self.blocking:
            raise RequestError("close sleeps with SO_LINGER and a time: that needs a process")
        name = request.get("on", "c1")
        self.table[name] = None
        os.close(on.sock.detach())  # not socket.close(), which hides an ECONNRESET
        return {"returned": 0}

    def _setsockopt(self, request: Request, on: Descriptor) -> Reply:
        level, number, shape = _option(request)
        value = request["value"]
        if shape == "linger":
            onoff, linger = _fields(request["option"], value, "onoff", "linger")
            on.sock.setsockopt(level, number, _LINGER.pack(onoff, linger))
            on.file.linger = linger if onoff else 0
        elif shape == "timeval":
            on.sock.setsockopt(level, number, _TIMEVAL.pack(*_fields(request["option"], value, "sec", "usec")))
        elif shape == "text":
            on.sock.setsockopt(level, number, _text(value).encode())
        elif shape == "hex":
            on.sock.setsockopt(level, number, bytes.fromhex(_text(value)))
        elif not isinstance(value, int):
            raise RequestError(f"{request['option']} takes a number, not {value!r}")
        else:
            # A u32 beyond 2**31 - 1 (a sequence number) does not fit the int of Python's setsockopt.
            on.sock.setsockopt(level, number, struct.pack("@I", value & 0xFFFFFFFF) if shape == "u32" else int(value))
        return {"returned": 0}

    def _getsockopt(self, request: Request, on: Descriptor) -> Reply:
        level, number, shape = _option(request)
        value: Any
        if shape == "linger":
            onoff, linger = _LINGER.unpack(on.sock.getsockopt(level, number, _LINGER.size))
            value = {"onoff": bool(onoff), "linger": linger}
        elif shape == "timeval":
            seconds, micros = _TIMEVAL.unpack(on.sock.getsockopt(level, number, _TIMEVAL.size))
            value = {"sec": seconds, "usec": micros}
        elif shape == "text":
            value = on.sock.getsockopt(level, number, 64).rstrip(b"\0").decode("ascii", "replace")
        elif shape == "hex":
            value = on.sock.getsockopt(level, number, 64).hex()
        elif shape == "fields":
            value = tcp_info(on.sock.getsockopt(level, number, 512))
        elif shape == "u32":
            (value,) = struct.unpack("@I", on.sock.getsockopt(level, number, 4))
        else:
            value = on.sock.getsockopt(level, number)
            if shape == "bool":
                value = bool(value)
            elif shape == "errno":
                value = errno_name(value) if value else 0
        return {"returned": 0, "value": value}

    def _getsockname(self, request: Request, on: Descriptor) -> Reply:
        found = on.sock.getsockname()
        return {"returned": 0, "address": {"address": found[0], "port": found[1]}}

    def _getpeername(self, request: Request, on: Descriptor) -> Reply:
        found = on.sock.getpeername()
        return {"returned": 0, "address": {"address": found[0], "port": found[1]}}

    def _poll(self, request: Request, on: Descriptor) -> Reply:
        poll = select.poll()
        poll.register(on.sock.fileno(), poll_mask(request))
        timeout = request.get("timeout") if self.blocking else 0
        found = poll.poll(None if timeout is None else timeout * 1000)
        events = found[0][1] if found else 0
        return {"returned": len(found), "value": [name for name, bit in POLL_EVENTS.items() if events & bit]}

    def _set_nonblocking(self, request: Request, on: Descriptor) -> Reply:
        on.file.nonblocking = bool(request.get("value", True))
        if self.blocking:
            os.set_blocking(on.sock.fileno(), not on.file.nonblocking)
        return {"returned": 0}

    def _dup(self, request: Request, on: Descriptor) -> Reply:
        self.table[self._free(request["as"])] = on.duplicate()
        return {"returned": 0}


# Here and not in the instance: bound methods in a dict of their owner are a cycle, which only the collector frees.
_METHODS = {
    "bind": Calls._bind, "listen": Calls._listen, "accept": Calls._accept, "connect": Calls._connect,
    "send": Calls._send, "sendmsg": Calls._send, "recv": Calls._recv, "recvmsg": Calls._recvmsg,
    "shutdown": Calls._shutdown, "close": Calls._close, "setsockopt": Calls._setsockopt,
    "getsockopt": Calls._getsockopt, "getsockname": Calls._getsockname, "getpeername": Calls._getpeername,
    "poll": Calls._poll, "set-nonblocking": Calls._set_nonblocking, "dup": Calls._dup,
}  # fmt: skip


def failure(error: OSError) -> Reply:
    """The reply to a call that ended in *error*."""
    return {"returned": -1, "error": errno_name(error.errno or 0)}


def abandon(sock: socket.socket) -> None:
    """Close *sock*, a connection by reset: no FIN whose sender outlives the trial. Raises nothing."""
    try:
        sock.setsockopt(_SOL, socket.SO_LINGER, LINGER_ZERO)
        os.close(sock.detach())
    except OSError:
        pass


def message_flags(request: Request) -> int:
    """The bits of a request's MSG_* names (send(2), recv(2)). Raises RequestError."""
    bits = 0
    for name in request.get("flags") or ():
        if name not in MSG_FLAGS:
            raise RequestError(f"unknown flag {name!r}")
        bits |= MSG_FLAGS[name]
    return bits


def poll_mask(request: Request) -> int:
    """The bits of a request's poll events (poll(2)). Raises RequestError."""
    bits = 0
    for name in request.get("events") or ():
        if name not in POLL_EVENTS:
            raise RequestError(f"unknown event {name!r}")
        bits |= POLL_EVENTS[name]
    return bits


def _sendmsg(sock: socket.socket, payload: bytes, flags: int) -> int:
    return sock.sendmsg([payload], [], flags)


def _option(request: Request) -> tuple[int, int, str]:
    name = request["option"]
    if name not in OPTIONS:
        raise RequestError(f"unknown socket option {name!r}")
    return OPTIONS[name]


def _fields(option: str, value: Any, first: str, second: str) -> tuple[int, int]:
    if not isinstance(value, dict) or set(value) != {first, second}:
        raise RequestError(f"{option} takes {{{first}, {second}}}, not {value!r}")
    return int(value[first]), int(value[second])


def _text(value: Any) -> str:
    if not isinstance(value, str):
        raise RequestError(f"expected text, not {value!r}")
    return value
