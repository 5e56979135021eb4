"""The closed vocabularies of the case format, each word with what it means. A word not here is an error."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

from conform.tcp.states import STATES

__all__ = [
    "CAPABILITIES", "ERRNOS", "NOISE", "SERVICES", "SETTINGS", "SETTING_VALUES", "SIGNALS", "SOCKET_OPTIONS",
    "STATES",
]  # fmt: skip

#: What a stack can be asked to have. ``requires:`` names these; what is lacking makes a trial not-applicable.
CAPABILITIES: dict[str, str] = {
    "calls": "an agent makes socket calls",
    "active-open": "it can open a connection to the tester",
    "overlap": "a call can sleep while others are made",
    "fork": "processes can be forked, and descriptors shared",
    "kill": "a process can be killed",
    "dup": "a descriptor can be duplicated",
    "sigpipe": "a write to a broken connection raises SIGPIPE",
    "states": "connection states can be read out",
    "linger": "SO_LINGER",
    "urgent": "MSG_OOB and SO_OOBINLINE",
    "tcp-info": "TCP_INFO",
    "repair": "sequence numbers of a socket can be set (Linux's TCP_REPAIR)",
    "shutdown-read": "shutdown with how: rd",
    "half-close": "a state can be reached by shutdown with how: wr, which sends a FIN",
    "simultaneous-open": "a SYN in SYN-SENT leads to SYN-RECEIVED",
    "reuse-port": "SO_REUSEPORT",
    "fast-open": "TCP Fast Open, RFC 7413",
    "timestamps": "TCP timestamps, RFC 7323",
    "sack": "selective acknowledgment, RFC 2018",
    "window-scaling": "window scaling, RFC 7323",
    "rfc5961": "blind-attack mitigations, RFC 5961",
    "md5": "TCP MD5 signatures, RFC 2385",
    "linux": "a Linux kernel: raw sysctls and Linux-only options",
    "ipv4": "IPv4",
    "ipv6": "IPv6",
    "reno": "Reno congestion control can be chosen",
    "cubic": "CUBIC congestion control can be chosen",
}

#: Services of a stack without an agent: what listens on a known port, and what it does with a connection.
SERVICES: dict[str, str] = {
    "echo": "sends back what it receives, and closes when the peer has (RFC 862)",
    "discard": "reads and forgets, and closes when the peer has (RFC 863)",
    "chargen": "sends without end, and reads and forgets (RFC 864)",
    "close": "closes at once when it has received an octet",
    "hold": "accepts, reads, and never closes",
}

#: Abstract settings. A stack's description maps each to what it does there; one that has no mapping is a lacking
#: capability and makes the trial not-applicable.
SETTINGS: dict[str, str] = {
    "challenge-limit": "how many challenge ACKs are sent a second; off for no limit (RFC 5961 section 7)",
    "invalid-ratelimit": "how long repeated ACKs of unacceptable segments are suppressed; off for never",
    "compressed-sack": "whether ACKs of out-of-order data may be held back and merged: on, off",
    "congestion-control": "the algorithm's name",
    "delayed-ack": "whether an acknowledgment may be delayed: on, off",
    "fin-wait-2-timeout": "how long an orphan stays in FIN-WAIT-2",
    "ignore-rst-in-time-wait": "RFC 1337's fix F1: on, off",
    "initial-window": "segments in the initial congestion window",
    "syn-retries": "how often a SYN is retransmitted",
    "syn-ack-retries": "how often a SYN,ACK is retransmitted",
    "retries": "how often data is retransmitted before giving up",
    "orphan-retries": "how often an orphan's FIN is retransmitted before giving up",
    "timestamps": "TCP timestamps: on, off",
    "sack": "selective acknowledgment: on, off",
    "window-scaling": "window scaling: on, off",
    "ecn": "explicit congestion notification: on, off, passive",
    "syn-cookies": "on, off, always",
    "fast-open": "on, off",
    "mtu": "the link's MTU in octets",
    "receive-buffer": "a socket's receive buffer in octets",
    "time-wait-reuse": "whether a connection in TIME-WAIT may be replaced by a new one of ours: on, off",
    "max-backlog-reset": "whether a full accept queue resets: on, off",
}


@dataclass(frozen=True, slots=True)
class Values:
    """What a setting can be: one of *words*, or a count of *least* or more, a duration, the name of an algorithm."""

    words: tuple[str, ...] = ()
    takes: Literal["count", "duration", "name"] | None = None
    least: int = 0


_ON_OFF = Values(("on", "off"))
#: What each setting can be, on any stack. ``true`` and ``false`` are ``on`` and ``off``.
SETTING_VALUES: dict[str, Values] = {
    "challenge-limit": Values(("off",), "count"),
    "invalid-ratelimit": Values(("off",), "duration"),
    "compressed-sack": _ON_OFF,
    "congestion-control": Values(takes="name"),
    "delayed-ack": _ON_OFF,
    "fin-wait-2-timeout": Values(takes="duration"),
    "ignore-rst-in-time-wait": _ON_OFF,
    "initial-window": Values(takes="count", least=1),
    "syn-retries": Values(takes="count"),
    "syn-ack-retries": Values(takes="count"),
    "retries": Values(takes="count"),
    "orphan-retries": Values(takes="count"),
    "timestamps": _ON_OFF,
    "sack": _ON_OFF,
    "window-scaling": _ON_OFF,
    "ecn": Values(("on", "off", "passive")),
    "syn-cookies": Values(("on", "off", "always")),
    "fast-open": _ON_OFF,
    "mtu": Values(takes="count", least=68),
    "receive-buffer": Values(takes="count", least=1),
    "time-wait-reuse": _ON_OFF,
    "max-backlog-reset": _ON_OFF,
}

#: Segments that are noise: recorded, and passed over while something else is awaited.
NOISE: dict[str, str] = {
    "retransmission": "octets that were already sent and not yet acknowledged, with the same content",
    "window-update": "an empty ACK that changes nothing but the window",
    "duplicate-ack": "an empty ACK that repeats the last acknowledgment and window",
    "keep-alive": "an ACK of at most one octet at SND.NXT - 1",
    "zero-window-probe": "new octets beyond a window that the tester closed",
    "tail-loss-probe": "a retransmission of data in flight, RFC 8985 section 7",
}
#: The noise that is tolerated when nothing is said.
DEFAULT_NOISE = ("retransmission", "window-update")

SIGNALS = ("SIGPIPE", "SIGKILL", "SIGTERM", "SIGINT", "SIGURG", "SIGIO")

#: errno names a call's outcome can be.
ERRNOS = (
    "EACCES", "EADDRINUSE", "EADDRNOTAVAIL", "EAFNOSUPPORT", "EAGAIN", "EALREADY", "EBADF", "ECONNABORTED",
    "ECONNREFUSED", "ECONNRESET", "EDESTADDRREQ", "EEXIST", "EFAULT", "EHOSTUNREACH", "EINPROGRESS", "EINTR", "EINVAL",
    "EIO", "EISCONN", "EMFILE", "EMSGSIZE", "ENETDOWN", "ENETUNREACH", "ENOBUFS", "ENOENT", "ENOMEM", "ENOPROTOOPT",
    "ENOTCONN", "ENOTSOCK", "EOPNOTSUPP", "EPERM", "EPIPE", "EPROTO", "EPROTONOSUPPORT", "ETIMEDOUT", "EWOULDBLOCK",
)  # fmt: skip

#: Socket options by name, each with the shape of its value (docs/agent-protocol.md): ``int``, ``bool``, ``text``,
#: ``hex`` (digits), ``errno`` (a name, or 0), ``fields`` (named numbers), or the fields of a struct.
SOCKET_OPTIONS: dict[str, str | dict[str, str]] = {
    "SO_LINGER": {"onoff": "bool", "linger": "int"},
    "SO_REUSEADDR": "bool",
    "SO_REUSEPORT": "bool",
    "SO_KEEPALIVE": "bool",
    "SO_OOBINLINE": "bool",
    "SO_RCVBUF": "int",
    "SO_SNDBUF": "int",
    "SO_RCVLOWAT": "int",
    "SO_SNDLOWAT": "int",
    "SO_RCVTIMEO": {"sec": "int", "usec": "int"},
    "SO_SNDTIMEO": {"sec": "int", "usec": "int"},
    "SO_ERROR": "errno",
    "SO_TYPE": "int",
    "SO_ACCEPTCONN": "bool",
    "IP_TOS": "int",
    "IP_TTL": "int",
    "IPV6_TCLASS": "int",
    "IPV6_UNICAST_HOPS": "int",
    "TCP_NODELAY": "bool",
    "TCP_CORK": "bool",
    "TCP_QUICKACK": "bool",
    "TCP_MAXSEG": "int",
    "TCP_LINGER2": "int",
    "TCP_USER_TIMEOUT": "int",
    "TCP_KEEPIDLE": "int",
    "TCP_KEEPINTVL": "int",
    "TCP_KEEPCNT": "int",
    "TCP_SYNCNT": "int",
    "TCP_DEFER_ACCEPT": "int",
    "TCP_FASTOPEN": "int",
    "TCP_FASTOPEN_CONNECT": "bool",
    "TCP_FASTOPEN_NO_COOKIE": "bool",
    "TCP_FASTOPEN_KEY": "hex",
    "TCP_WINDOW_CLAMP": "int",
    "TCP_CONGESTION": "text",
    "TCP_NOTSENT_LOWAT": "int",
    "TCP_INFO": "fields",
    "TCP_REPAIR": "int",
    "TCP_REPAIR_QUEUE": "int",
    "TCP_QUEUE_SEQ": "int",
}

MsgFlag = Literal[
    "MSG_OOB", "MSG_PEEK", "MSG_MORE", "MSG_DONTWAIT", "MSG_WAITALL", "MSG_NOSIGNAL", "MSG_TRUNC", "MSG_FASTOPEN"
]
MSG_FLAGS: tuple[str, ...] = get_args(MsgFlag)
