"""PyTCP and its agent in one process: a TCP/IP stack in Python on a TAP device, driven on standard input and output.

Run by the Python of a virtual environment that has pmd-pytcp, in the network namespace of the TAP device. Speaks
docs/agent-protocol.md; conform/stacks/pytcp.yaml is the description.

PyTCP 0.3.8 runs in one thread, on one asyncio loop, which is this program's. So whether a call sleeps is known: its
coroutine is suspended, and what it waits for has not come. And so a ping can be made a fence. PyTCP answers most
segments at once, but sends data, SYN and FIN from a timer a millisecond or two later, by when it would have answered a
ping long ago. Pings are therefore held back, outside of PyTCP, until no such timer is due; see :class:`Fence`.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import errno
import fcntl
import gc
import json
import os
import socket as posix
import struct
import sys
import traceback
from collections import deque
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any, NoReturn

if __name__ == "__main__":
    # Run by another Python than conform's: its own packages first, and of the directory where conform is only conform.
    sys.path[0:1] = []
    sys.path.append(str(Path(__file__).resolve().parents[3]))

from conform.stacks.agent.calls import (
    MALFORMED,
    MSG_FLAGS,
    OPTIONS,
    PROTOCOL,
    Reply,
    Request,
    RequestError,
    errno_name,
    tcp_info,
)

#: What PyTCP's socket API can be asked for. Not dup, fork or kill (it is a library in one process), no SIGPIPE, no
#: urgent data (it delivers that inline and never sends it), no repair; of Fast Open only the server's side.
CAPABILITIES = ("calls", "overlap", "states", "linger", "tcp-info", "shutdown-read", "reuse-port")

#: The stack's link-layer address, locally administered. Every device is a link of its own, so all can have the same.
HARDWARE = "02:00:00:50:59:01"
#: Answers for a day without asking again who the tester is: such questions in the middle of a trial are of no use.
BASE = {"neighbor.default.reachable_time": 86400}

_TUNSETIFF, _IFF_TAP, _IFF_NO_PI = 0x400454CA, 0x0002, 0x1000
_POLL_EVENTS = frozenset({"in", "out", "pri", "err", "hup", "rdhup"})
#: Flags that PyTCP's API does not have but that change nothing in it, or can be had otherwise.
_HARMLESS = MSG_FLAGS["MSG_DONTWAIT"] | MSG_FLAGS["MSG_NOSIGNAL"]
_HOW = {"rd": 0, "wr": 1, "rdwr": 2}  # PyTCP's SHUT_RD, SHUT_WR, SHUT_RDWR
_CONGESTION = {"reno": "RENO", "cubic": "CUBIC"}
#: PyTCP takes these in milliseconds, all others (and the protocol) in seconds.
_MILLISECONDS = frozenset({"TCP_KEEPIDLE", "TCP_KEEPINTVL"})


def failure(error: Exception) -> Reply:
    """The reply for an exception of PyTCP's.

    One that is no error of POSIX, such as a failed assertion, is EIO, with the exception beside it: the stack failed,
    not the request.
    """
    if isinstance(error, OSError) and error.errno is not None:
        return {"returned": -1, "error": errno_name(error.errno)}
    if isinstance(error, TimeoutError):  # what a time-out of SO_RCVTIMEO is in PyTCP: without a number
        return {"returned": -1, "error": "ETIMEDOUT"}
    traceback.print_exception(error)
    return {"returned": -1, "error": "EIO", "why": f"{type(error).__name__}: {error}"}


def rfc_state(name: str) -> str:
    """PyTCP's name of a state as RFC 9293 spells it."""
    return {"SYN_RCVD": "SYN-RECEIVED"}.get(name, name.replace("_", "-"))


def is_echo_request(frame: Any) -> bool:
    """Whether the Ethernet *frame* is an ICMP or ICMPv6 echo request without extension headers."""
    kind = frame[12:14]
    if kind == b"\x08\x00" and len(frame) > 34:
        at = 14 + (frame[14] & 15) * 4
        return bool(frame[23] == 1 and len(frame) > at and frame[at] == 8)
    return bool(kind == b"\x86\xdd" and len(frame) > 54 and frame[20] == 58 and frame[54] == 128)


def number_of(value: Any) -> Any:
    """The number that a text of digits is; all else as it is."""
    return int(value) if isinstance(value, str) and value.removeprefix("-").isdecimal() else value


class Fence:
    """Hands frames to the stack: pings once the stack is through with what came before them, all others at once.

    *hand* takes a frame's packet. *due*, given a moment, says when the last of those timers of the stack fires that
    fire before it, ``None`` where none does. *now* is the loop's clock and *at* its ``call_at``.

    PyTCP does its deferred work in ticks of 1 ms, two of them at most behind an event: a CLOSE that waited for data to
    be acknowledged changes the state in the first and sends its FIN in the second. A ping waits for one tick more, and
    not for time to pass: the loop runs timers in the order of their times, so that one set right behind the tick comes
    right behind it, however late the loop is. The ticks are counted because they go on while anything is
    unacknowledged.
    """

    TICKS = 3
    SOON = 0.002
    BEHIND = 1e-6

    def __init__(
        self,
        hand: Callable[[Any], None],
        due: Callable[[float], float | None],
        now: Callable[[], float],
        at: Callable[..., Any],
    ) -> None:
        self._hand = hand
        self._due = due
        self._now = now
        self._at = at

    def deliver(self, packet: Any) -> None:
        """Take a packet (with ``frame``) from the device."""
        if is_echo_request(packet.frame):
            self._hold(packet, self.TICKS)
        else:
            self._hand(packet)

    def _hold(self, packet: Any, ticks: int) -> None:
        tick = self._due(self._now() + self.SOON) if ticks else None
        if tick is None:
            self._hand(packet)
        else:
            self._at(tick + self.BEHIND, self._hold, packet, ticks - 1)


class Stack:
    """PyTCP itself: its start, its settings, its sessions. What is not of its public API is used here alone."""

    def __init__(self, base: dict[str, Any]) -> None:
        # Here, so that all else can be loaded without PyTCP.
        import pmd_net_addr
        from pmd_pytcp import socket, stack
        from pmd_pytcp.lib.interface_layer import InterfaceLayer
        from pmd_pytcp.protocols.tcp.session import tcp__session
        from pmd_pytcp.protocols.tcp.tcp__enums import CcMode
        from pmd_pytcp.protocols.tcp.tcp__stack import TcpStack
        from pmd_pytcp.stack import sysctl

        self.address: Any = pmd_net_addr
        self.socket: Any = socket
        self.congestion: Any = CcMode
        self._stack: Any = stack
        self._layer: Any = InterfaceLayer
        self._tcp_stack: Any = TcpStack
        self._sysctl: Any = sysctl
        self._base = BASE | base
        self._interface = 0
        self._configured: set[str] = set()
        #: What sessions do not offer in their SYN; PyTCP has this by session, and no way to say it beforehand.
        self._advertise: dict[str, bool] = {}
        #: Options that each new socket is given.
        self.options: dict[str, Any] = {}
        advertise: Any = tcp__session.AdvertiseState
        tcp__session.AdvertiseState = lambda: advertise(**self._advertise)

    async def start(self, interface: str, mtu: int, addresses: dict[str, int]) -> None:
        """On the TAP device *interface*, with *addresses*, each with the length of its prefix. Raises OSError.

        The addresses are assigned as an administrator would: without asking first whether somebody has them, which is
        what PyTCP's start takes its time for.
        """
        device = os.open("/dev/net/tun", os.O_RDWR | os.O_CLOEXEC)
        try:
            fcntl.ioctl(device, _TUNSETIFF, struct.pack("16sH14x", interface.encode(), _IFF_TAP | _IFF_NO_PI))
        except OSError:
            os.close(device)
            raise
        stack = self._stack
        stack.init(
            fd=device,
            layer=self._layer.L2,
            mtu=mtu,
            mac_address=self.address.MacAddress(HARDWARE),
            interface_name=interface,
            ip4_dhcp=False,
            ip6_gua_autoconfig=False,
            ip6_lla_autoconfig=False,
            sysctls=self._base,
        )
        (self._interface,) = stack.interfaces.keys()
        for address, prefix in addresses.items():
            self.assign(address, prefix)
        await stack.start()
        handler = stack.interfaces[self._interface]
        loop = asyncio.get_running_loop()

        def hand(packet: Any) -> None:
            try:
                handler._rx_frame_entry(packet)
            except Exception:  # which the receiving ring would swallow
                traceback.print_exc()

        handler._rx_ring.set_deliver_callback(Fence(hand, self._due, loop.time, loop.call_at).deliver)
        await asyncio.sleep(0)  # the tasks that take the addresses over
        gc.collect()
        gc.freeze()  # a collection in the middle of a trial has then little to look at

    def assign(self, address: str, prefix: int) -> None:
        """Give the interface *address*, if it does not have it."""
        if address in self._configured:
            return
        kind = self.address.Ip6IfAddr if ":" in address else self.address.Ip4IfAddr
        self._stack.address.interface(self._interface).add(ifaddr=kind(f"{address}/{prefix}"))
        self._configured.add(address)

    def set_mtu(self, mtu: int) -> None:
        """The interface's MTU from now on."""
        link = self._stack.link.interface(self._interface)
        if link.mtu != mtu:
            link.set_mtu(mtu=mtu)

    def new_socket(self, ip: int) -> Any:
        """A TCP socket."""
        family = self.socket.AF_INET if ip == 4 else self.socket.AF_INET6
        return self.socket.socket(family, self.socket.SOCK_STREAM)

    def set(self, name: str, value: Any) -> None:
        """Make a setting: a sysctl, ``advertise.`` with flags, ``socket.`` with an option of new sockets, or
        ``challenge-limit``, ACKs in a second.

        Raises RequestError for one that PyTCP does not know, or a value that it refuses.
        """
        value = number_of(value)
        if name == "challenge-limit":
            if not isinstance(value, int) or value < 1:
                raise RequestError(f"{name} is a number of ACKs in a second, at least 1, not {value!r}")
            name, value = "tcp.challenge_ack.rate_limit_ms", 1000 // value
        kind, _, rest = name.partition(".")
        if kind == "advertise":
            self._advertise.update(dict.fromkeys(rest.split(","), bool(value)))
        elif kind == "socket" and rest in OPTIONS:
            self.options[rest] = value
        else:
            try:
                self._sysctl.set(name, value)
            except (KeyError, ValueError) as error:
                raise RequestError(f"{name} cannot be set to {value!r}: {error}") from None

    async def reset(self) -> None:
        """As if just started: every connection reset, every socket closed, every setting back."""
        stack = self._stack
        for sock in stack.sockets.values():
            if sock.tcp_session is None:
                sock.close()
            else:
                sock.abort()
        stack.sockets.clear()
        stack.tcp_stack = self._tcp_stack()
        stack.pmtu_cache.clear()
        stack.pmtu_state.clear()
        self._advertise.clear()
        self.options.clear()
        self._sysctl.reset_to_defaults()
        for name, value in self._base.items():
            self._sysctl.set(name, value)
        await asyncio.sleep(0)  # the resets are written in the next turn of the loop

    def state(self, ip: int, port: int, peer: int) -> str:
        """The state of the connection between *port* and the tester's *peer*, or of the listener on *port*."""
        for identity, sock in self._stack.sockets.items():
            if identity.local_port == port and identity.remote_port == peer:
                if identity.local_address.version != ip or sock.tcp_session is None:
                    continue
                return rfc_state(sock.state.name)
        return "CLOSED"

    def _due(self, before: float) -> float | None:
        found = None
        for sock in self._stack.sockets.values():
            session = getattr(sock, "_tcp_session", None)
            handle = None if session is None else session._timers._service_handle
            if handle is not None and (when := handle._loop_handle.when()) < before:
                found = when if found is None else max(found, when)
        return found


class Descriptor:
    """A socket under a name, and its connect where that was not waited for."""

    __slots__ = ("connecting", "sock")

    def __init__(self, sock: Any) -> None:
        self.sock = sock
        self.connecting: asyncio.Task[None] | None = None

    def sleeps(self, request: Request) -> bool:
        """Whether the call of *request*, whose coroutine is suspended, waits for what has not come."""
        do = request["do"]
        session = self.sock.tcp_session
        if do == "accept":
            return bool(self.sock._event__tcp_session_established.locked())
        if do == "poll":
            return not self.events(request["events"])
        if session is None:
            return False
        if do == "connect":
            return bool(self.sock.getblocking() and session._event__connect.locked())
        return do == "recv" and not session._event__rx_buffer.is_set()

    def events(self, wanted: list[str]) -> list[str]:
        """Those of *wanted*, and err and hup, that hold: by what PyTCP's own calls would do now, as it has no poll."""
        session = self.sock.tcp_session
        state = self.sock.state.name
        holding = set()
        if state == "LISTEN":
            holding |= {"in"} if self.sock._tcp_accept else set()
        elif session is None or state == "CLOSED":
            holding |= {"hup", "out"}
            if session is not None and session._connection_error.name != "NONE":
                holding |= {"err", "in", "rdhup"}
        else:
            if session._event__rx_buffer.is_set():
                holding.add("in")
            if state in ("CLOSE_WAIT", "LAST_ACK", "CLOSING", "TIME_WAIT") or session._shut.rd:
                holding |= {"in", "rdhup"}
            if state in ("ESTABLISHED", "CLOSE_WAIT") or session._shut.wr:
                holding.add("out")
        return [each for each in wanted if each in holding] + sorted(holding & {"err", "hup"} - set(wanted))


class Calls:
    """Executes the calls of one trial on a table of named sockets, each call a coroutine."""

    def __init__(self, stack: Stack, ip: int, names: dict[str, str]) -> None:
        self.stack = stack
        self.ip = ip
        self.names = names | {"any": "0.0.0.0" if ip == 4 else "::"}
        #: None once closed.
        self.table: dict[str, Descriptor | None] = {}
        self._connects: set[asyncio.Task[None]] = set()
        self._methods: dict[str, Callable[[Request, Descriptor], Coroutine[Any, Any, Reply]]] = {
            "bind": self._bind,
            "listen": self._listen,
            "accept": self._accept,
            "connect": self._connect,
            "send": self._send,
            "sendmsg": self._send,
            "recv": self._recv,
            "recvmsg": self._recvmsg,
            "shutdown": self._shutdown,
            "close": self._close,
            "getsockname": self._getsockname,
            "getpeername": self._getpeername,
            "setsockopt": self._setsockopt,
            "getsockopt": self._getsockopt,
            "set-nonblocking": self._set_nonblocking,
            "poll": self._poll,
        }

    def find(self, request: Request) -> Descriptor | None:
        """The descriptor that *request* is made on, None for ``socket``. Raises RequestError, OSError (EBADF)."""
        do = request.get("do")
        if do == "socket":
            return None
        if not isinstance(do, str) or do not in self._methods:
            raise RequestError(f"unknown call {do!r}")
        name = request.get("on", "listener" if do in ("bind", "listen", "accept") else "c1")
        try:
            found = self.table[name]
        except (KeyError, TypeError):
            raise RequestError(f"no descriptor has the name {name!r}") from None
        if found is None:
            raise OSError(errno.EBADF, "closed")
        return found

    async def drop(self) -> None:
        """Give up the connects that nobody waits for."""
        for connect in self._connects:
            connect.cancel()
        await asyncio.gather(*self._connects, return_exceptions=True)
        self.table.clear()

    async def perform(self, request: Request, on: Descriptor | None) -> Reply:
        """The reply, less its id. Raises nothing but CancelledError: what goes wrong is in the reply."""
        try:
            if on is None:
                return await self._socket(request)
            return await self._methods[request["do"]](request, on)
        except RequestError as fault:
            return {"fault": str(fault)}
        except (KeyError, TypeError, ValueError, OverflowError) as error:
            # PyTCP raises these too, of values that a request can well have.
            traceback.print_exception(error)
            return {"fault": f"malformed request: {type(error).__name__}: {error}"}
        except Exception as error:
            return failure(error)

    def _free(self, name: Any) -> str:
        if not isinstance(name, str):
            raise RequestError(f"a name is text, not {name!r}")
        if self.table.get(name) is not None:
            raise RequestError(f"the name {name!r} belongs to a descriptor that is open")
        return name

    async def _socket(self, request: Request) -> Reply:
        name = self._free(request.get("as") or "listener")
        sock = self.stack.new_socket(self.ip)
        for option, value in self.stack.options.items():
            self._set(sock, option, value)
        self.table[name] = Descriptor(sock)
        return {"returned": 0}

    def try_option(self, option: str, value: Any) -> None:
        """Raise RequestError where a new socket does not take *value* for *option*."""
        try:
            self._set(self.stack.new_socket(self.ip), option, number_of(value))
        except (OSError, *MALFORMED) as error:
            raise RequestError(f"{option} cannot be set to {value!r}: {error}") from None

    def _address(self, text: str) -> str:
        """An address of the trial's family. Raises RequestError for a text that is none."""
        address = self.names.get(text, text)
        try:
            posix.inet_pton(posix.AF_INET if self.ip == 4 else posix.AF_INET6, address)
        except OSError:
            raise RequestError(f"{text!r} is no address of the trial's IP version") from None
        return address

    async def _bind(self, request: Request, on: Descriptor) -> Reply:
        address = self._address(request.get("address") or "any")
        port = request.get("port")
        on.sock.bind((address, 0 if port in (None, "any") else port))
        return {"returned": 0}

    async def _listen(self, request: Request, on: Descriptor) -> Reply:
        on.sock.listen(backlog=request.get("backlog", 16))
        return {"returned": 0}

    async def _accept(self, request: Request, on: Descriptor) -> Reply:
        name = self._free(request.get("as") or "c1")
        made, peer = await on.sock.accept()
        if self.table.get(name) is not None:  # another call took the name while this one slept
            made.abort()
            self._free(name)
        self.table[name] = Descriptor(made)
        return {"returned": 0, "address": _address(peer)}

    async def _connect(self, request: Request, on: Descriptor) -> Reply:
        address = self._address(request.get("address") or "tester")
        connect = on.sock.connect((address, request["port"]))
        if on.sock.getblocking():
            await connect
            return {"returned": 0}
        # PyTCP's connect always waits. A program that would not has it done in a task, so that is done here.
        if on.connecting is not None:
            connect.close()
            if not on.connecting.done():
                raise OSError(errno.EALREADY, "the first is under way")
            on.connecting.result()
            raise OSError(errno.EISCONN, "the first succeeded")
        on.connecting = asyncio.create_task(connect)
        self._connects.add(on.connecting)
        await asyncio.sleep(0)
        if not on.connecting.done():
            raise OSError(errno.EINPROGRESS, "SYN-SENT")
        on.connecting.result()
        return {"returned": 0}

    async def _send(self, request: Request, on: Descriptor) -> Reply:
        payload = bytes.fromhex(request["payload"])
        _flags(request)
        sent = await (on.sock.sendmsg([payload]) if request["do"] == "sendmsg" else on.sock.send(payload))
        return {"returned": sent}

    async def _recv(self, request: Request, on: Descriptor) -> Reply:
        flags = _flags(request, MSG_FLAGS["MSG_WAITALL"])
        only_look = flags & MSG_FLAGS["MSG_DONTWAIT"]
        size, data = request.get("size", 65536), b""
        while True:
            try:
                more = await on.sock.recv(size - len(data), timeout=0 if only_look else None)
            except Exception as error:
                if data:  # what came before the failure is returned; the next call meets it
                    break
                if isinstance(error, TimeoutError) and only_look and error.errno is None:
                    raise OSError(errno.EAGAIN, "nothing there") from None
                raise
            data += more
            if not more or len(data) >= size or not flags & MSG_FLAGS["MSG_WAITALL"]:
                break
        return {"returned": len(data), "data": data.hex()}

    async def _recvmsg(self, request: Request, on: Descriptor) -> Reply:
        await on.sock.recvmsg(request.get("size", 65536), 0, _flags(request))
        raise AssertionError("PyTCP's recvmsg has no data path")

    async def _shutdown(self, request: Request, on: Descriptor) -> Reply:
        on.sock.shutdown(_HOW[request["how"]])
        return {"returned": 0}

    async def _close(self, request: Request, on: Descriptor) -> Reply:
        self.table[request.get("on", "c1")] = None
        on.sock.close()
        return {"returned": 0}

    async def _getsockname(self, _: Request, on: Descriptor) -> Reply:
        return {"returned": 0, "address": _address(on.sock.getsockname())}

    async def _getpeername(self, _: Request, on: Descriptor) -> Reply:
        return {"returned": 0, "address": _address(on.sock.getpeername())}

    async def _setsockopt(self, request: Request, on: Descriptor) -> Reply:
        self._set(on.sock, request["option"], request["value"])
        return {"returned": 0}

    async def _getsockopt(self, request: Request, on: Descriptor) -> Reply:
        level, number, shape = self._option(request["option"])
        return {"returned": 0, "value": self._plain(request["option"], shape, on.sock.getsockopt(level, number))}

    async def _set_nonblocking(self, request: Request, on: Descriptor) -> Reply:
        on.sock.setblocking(not request["value"])
        return {"returned": 0}

    async def _poll(self, request: Request, on: Descriptor) -> Reply:
        wanted = list(request["events"])
        if not _POLL_EVENTS.issuperset(wanted):
            raise RequestError(f"unknown events {wanted!r}")
        loop = asyncio.get_running_loop()
        timeout = request.get("timeout")
        end = float("inf") if timeout is None else loop.time() + timeout
        # PyTCP wakes nobody but its own calls, so its state is looked at as often as it looks at it itself.
        while not (found := on.events(wanted)) and loop.time() < end:
            await asyncio.sleep(0.001)
        return {"returned": int(bool(found)), "value": found}

    # Options ---------------------------------------------------------------------------------------------------------
    def _option(self, name: str) -> tuple[Any, int, str]:
        try:
            level, number, shape = OPTIONS[name]
        except (KeyError, TypeError):
            raise RequestError(f"unknown option {name!r}") from None
        socket = self.stack.socket
        levels = {0: socket.IPPROTO_IP, 1: socket.SOL_SOCKET, 6: socket.IPPROTO_TCP, 41: socket.IPPROTO_IPV6}
        return levels[level], number, shape

    def _set(self, sock: Any, name: str, value: Any) -> None:
        level, number, shape = self._option(name)
        if shape == "linger":
            value = struct.pack("@ii", bool(value["onoff"]), value["linger"])
        elif shape == "timeval":
            seconds = value["sec"] + value["usec"] / 1e6
            value = int(seconds) if seconds.is_integer() else seconds
        elif shape == "text":
            if value not in _CONGESTION:  # PyTCP takes a number of its own, and would raise ValueError
                raise OSError(errno.ENOENT, "no such congestion control")
            value = self.stack.congestion[_CONGESTION[value]].value
        elif shape == "hex":
            value = bytes.fromhex(value)
        elif not isinstance(value, int):
            raise RequestError(f"{name} takes a number, not {value!r}")
        else:
            value = int(value) * (1000 if name in _MILLISECONDS else 1)
        sock.setsockopt(level, number, value)

    def _plain(self, name: str, shape: str, value: Any) -> Any:
        if shape == "linger":
            onoff, linger = struct.unpack("@ii", value)
            return {"onoff": bool(onoff), "linger": linger}
        if shape == "timeval":
            return {"sec": int(value), "usec": 0}
        if shape == "bool":
            return bool(value)
        if shape == "fields":
            return tcp_info(value)
        if shape == "text":
            return self.stack.congestion(value).name.lower()
        return value // 1000 if name in _MILLISECONDS else value


def _address(pair: tuple[str, int]) -> dict[str, Any]:
    return {"address": pair[0], "port": pair[1]}


def _flags(request: Request, possible: int = 0) -> int:
    """The flags of *request*. Raises OSError (EOPNOTSUPP) for what PyTCP's calls cannot do: they have no flags.

    Those in *possible* the agent makes up for.
    """
    bits = 0
    for name in request.get("flags") or ():
        try:
            bits |= MSG_FLAGS[name]
        except (KeyError, TypeError):
            raise RequestError(f"unknown flag {name!r}") from None
    if bits & ~(_HARMLESS | possible):
        raise OSError(errno.EOPNOTSUPP, "PyTCP has no such flag")
    return bits


class Agent:
    """Hears requests, has the calls made, replies; from the first hello on a stack runs beside it."""

    def __init__(self, write: Callable[[bytes], None], options: argparse.Namespace) -> None:
        self._write = write
        self._options = options
        self._stack: Stack | None = None
        self._calls: Calls | None = None
        self._jobs: set[asyncio.Task[None]] = set()

    def send(self, message: dict[str, Any]) -> None:
        """One line."""
        self._write(json.dumps(message, separators=(",", ":")).encode() + b"\n")

    async def hear(self, line: bytes) -> None:
        """Do what one line says; a call is then at its end, or asleep."""
        id: Any = None
        try:
            try:
                request = json.loads(line)
                id = request.get("id")
                if "hello" in request:
                    await self._hello(request)
                elif self._stack is None or self._calls is None:
                    raise RequestError("hello comes first")
                else:
                    await self._do(id, request, self._stack, self._calls)
            except MALFORMED as error:
                raise RequestError(f"malformed request: {type(error).__name__}: {error}") from None
        except RequestError as fault:
            self.send({"id": id, "fault": str(fault)})
        except OSError as error:
            self.send({"id": id, **failure(error)})

    async def _hello(self, request: Request) -> None:
        if request["hello"] != PROTOCOL:
            raise RequestError(f"this agent speaks version {PROTOCOL} of the protocol, not {request['hello']!r}")
        if request["ip"] not in (4, 6):
            raise RequestError(f"there is no IP version {request['ip']!r}")
        ip, pair = int(request["ip"]), {"stack": str(request["stack"]), "tester": str(request["tester"])}
        options = self._options
        prefixes = {4: options.prefix4, 6: options.prefix6}
        if "prefix" in request:
            prefixes[ip] = int(request["prefix"])
        if self._stack is None:
            interface = request.get("interface") or options.interface
            if not interface:
                raise RequestError("malformed request: no interface, here or on the command line")
            given = ((options.stack4, 4), (options.stack6, 6), (pair["stack"], ip))
            stack = Stack(options.sysctl)
            mtu = int(request.get("mtu") or options.mtu)
            addresses = {address: prefixes[version] for address, version in given if address}
            try:
                await stack.start(interface, mtu, addresses)
            except OSError as error:
                raise RequestError(f"PyTCP cannot be started on {interface}: {failure(error)['error']}") from None
            self._stack = stack
        else:
            await self.forget()
            self._stack.assign(pair["stack"], prefixes[ip])
            if "mtu" in request:
                self._stack.set_mtu(int(request["mtu"]))
        self._calls = Calls(self._stack, ip, pair)
        self.send({"hello": PROTOCOL, "agent": "conform-pytcp", "capabilities": CAPABILITIES})

    async def forget(self) -> None:
        """End the trial: its calls without a reply, its connections by reset."""
        for job in self._jobs:
            job.cancel()
        if self._jobs:
            await asyncio.wait(self._jobs)
        if self._calls is not None:
            await self._calls.drop()
            self._calls = None
        if self._stack is not None:
            await self._stack.reset()

    async def _do(self, id: Any, request: Request, stack: Stack, calls: Calls) -> None:
        do = request["do"]
        if do == "state":
            value = stack.state(calls.ip, int(request["port"]), int(request["peer"]))
            self.send({"id": id, "returned": 0, "value": value})
        elif do == "set":
            name = str(request["name"])
            if name.startswith("socket."):
                calls.try_option(name.removeprefix("socket."), request["value"])
            stack.set(name, request["value"])
            self.send({"id": id, "returned": 0})
        else:
            await self._call(id, request, calls)

    async def _call(self, id: Any, request: Request, calls: Calls) -> None:
        on = calls.find(request)
        job = asyncio.create_task(self._make(id, request, calls, on))
        self._jobs.add(job)
        job.add_done_callback(self._jobs.discard)
        await asyncio.sleep(0)
        if job.done() or on is None:
            return
        # Right after its first step the call has returned or is asleep, but for one that PyTCP makes with a time-out,
        # for which asyncio takes a turn or two more.
        for _ in range(10):
            if on.sleeps(request):
                if request.get("overlap"):
                    self.send({"id": id, "blocked": True})
                return
            await asyncio.sleep(0)
            if job.done():
                return

    async def _make(self, id: Any, request: Request, calls: Calls, on: Descriptor | None) -> None:
        self.send({"id": id, **await calls.perform(request, on)})


class Reader:
    """Lines of a descriptor, read by a loop."""

    def __init__(self, fd: int) -> None:
        self._fd = fd
        self._rest = b""
        self._lines: deque[bytes] = deque()
        self._ended = False
        self._more = asyncio.Event()
        asyncio.get_running_loop().add_reader(fd, self._read)

    def _read(self) -> None:
        try:
            data = os.read(self._fd, 1 << 20)
        except OSError:
            data = b""
        if not data:
            self._ended = True
            asyncio.get_running_loop().remove_reader(self._fd)
        *lines, self._rest = (self._rest + data).split(b"\n")
        self._lines.extend(filter(None, lines))
        self._more.set()

    async def line(self) -> bytes | None:
        """The next, None at the end."""
        while not self._lines:
            if self._ended:
                return None
            self._more.clear()
            await self._more.wait()
        return self._lines.popleft()


def parse(arguments: list[str]) -> argparse.Namespace:
    """The command line. Exits where it makes no sense."""
    parser = argparse.ArgumentParser(description="PyTCP on a TAP device, driven on standard input and output")
    parser.add_argument("--interface", help="the TAP device, if hello does not name it")
    parser.add_argument("--mtu", type=int, default=1500)
    for version, length in ((4, 24), (6, 64)):
        parser.add_argument(f"--stack{version}", default="", help=f"PyTCP's IPv{version} address, beside hello's")
        parser.add_argument(f"--tester{version}", default="", help="not used: the tester is on the link")
        parser.add_argument(f"--prefix{version}", type=int, default=length)
    parser.add_argument("--sysctl", action="append", default=[], metavar="KEY=NUMBER", help="for every trial")
    options = parser.parse_args(arguments)
    sysctls: dict[str, int] = {}
    for each in options.sysctl:
        key, _, value = each.partition("=")
        try:
            sysctls[key] = int(value)
        except ValueError:
            parser.error(f"--sysctl wants KEY=NUMBER, not {each!r}")
    options.sysctl = sysctls
    return options


async def serve(fd: int, write: Callable[[bytes], None], options: argparse.Namespace) -> None:
    """Until the end of *fd*."""
    reader = Reader(fd)
    agent = Agent(write, options)
    try:
        while (line := await reader.line()) is not None:
            await agent.hear(line)
    except BrokenPipeError:
        pass
    except Exception as error:
        agent.send({"broke": f"{type(error).__name__}: {error}"})
        raise
    finally:
        await agent.forget()


def main() -> NoReturn:
    """The program."""
    options = parse(sys.argv[1:])
    channel = os.dup(1)
    os.dup2(2, 1)  # whoever prints is not to be heard on the channel

    def write(data: bytes) -> None:
        while data:
            data = data[os.write(channel, data) :]

    status = 1
    with contextlib.suppress(KeyboardInterrupt):
        try:
            asyncio.run(serve(0, write, options))
            status = 0
        except BrokenPipeError:
            status = 0
        except Exception:
            traceback.print_exc()
    sys.stderr.flush()
    os._exit(status)  # not by way of asyncio's and PyTCP's own ends, which take their time


if __name__ == "__main__":
    main()
