"""The Linux stack: its agents, its state read-out, and what this machine's kernel allows."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from pydantic import BaseModel

from conform.stacks.inline import InlineAgent
from conform.stacks.process import Nursery, ProcessAgent
from conform.stacks.seams import NetworkNamespace
from conform.stacks.sockdiag import SockDiag

__all__ = ["InlineAgent", "Nursery", "ProcessAgent", "SockDiag", "congestion_controls", "lacking", "needs_process"]

#: Calls that the inline agent can start and leave asleep exactly as a process does.
_OVERLAP_INLINE = frozenset({"accept", "connect", "recv", "recvmsg", "poll"})
#: Options that change how a call sleeps, or for how long.
_PROCESS_OPTIONS = frozenset({"SO_RCVTIMEO", "SO_SNDTIMEO", "SO_RCVLOWAT", "TCP_FASTOPEN_CONNECT"})
_PROCESS_FLAGS = frozenset({"MSG_WAITALL", "MSG_FASTOPEN"})
#: Parts of a case that hold no calls and much else; they are passed over, because this is asked for each trial.
_WITHOUT_CALLS = frozenset(
    {"send", "expect", "state", "silence", "check", "finish", "place", "@", "covers", "templates"}
)


def needs_process(what: BaseModel | Mapping[str, Any]) -> bool:
    """Whether a case (or a trial's ``document``) needs agents that are processes: real ones, or really blocking calls.

    So it is for fork, kill and exit; for calls made ``by`` another than main; for a ``start`` of a call whose sleep
    cannot be told from EAGAIN; for SO_LINGER with a time, with which close(2) sleeps; and for the options and flags
    that change how a call sleeps. In doubt it is so.
    """
    return any(_call_needs_process(call, started) for call, started in _calls(what))


def _calls(part: Any) -> Iterator[tuple[Any, bool]]:
    if isinstance(part, BaseModel):
        part = part.__dict__
    if isinstance(part, dict):
        for key, value in part.items():
            if key in ("call", "start") and value is not None:
                yield value, key == "start"
            elif isinstance(value, (dict, list, tuple, BaseModel)) and key not in _WITHOUT_CALLS:
                yield from _calls(value)
    elif isinstance(part, (list, tuple)):
        for value in part:
            yield from _calls(value)


def _call_needs_process(call: Any, started: bool) -> bool:
    if isinstance(call, str):
        call = {"do": call}

    def get(name: str) -> Any:
        return call.get(name) if isinstance(call, Mapping) else getattr(call, name, None)

    do = get("do")
    if do in ("fork", "kill", "exit") or get("by") not in (None, "main") or (started and do not in _OVERLAP_INLINE):
        return True
    flags = get("flags") or ()
    if not _PROCESS_FLAGS.isdisjoint([flags] if isinstance(flags, str) else flags):
        return True
    if do != "setsockopt":
        return False
    if get("option") == "SO_LINGER":
        value = get("value")
        return not isinstance(value, Mapping) or bool(value.get("onoff") and value.get("linger"))
    return get("option") in _PROCESS_OPTIONS


def congestion_controls(netns: NetworkNamespace) -> frozenset[str]:
    """The algorithms that *netns*, a namespace made for a trial, can have for its default.

    A new namespace allows those that the kernel does not restrict: Reno always, and the one that the kernel was built
    to use by default (tcp(7), tcp_allowed_congestion_control). With CAP_NET_ADMIN a socket can still be given any by
    TCP_CONGESTION.
    """
    with netns.enter(), open("/proc/sys/net/ipv4/tcp_allowed_congestion_control") as file:
        return frozenset(file.read().split())


def lacking(netns: NetworkNamespace) -> dict[str, str]:
    """The capabilities that Linux has and this machine's kernel does not allow in *netns*, each with the reason."""
    allowed = congestion_controls(netns)
    found = {
        name: f"this kernel allows only {', '.join(sorted(allowed))} in a new network namespace"
        for name in ("reno", "cubic")
        if name not in allowed
    }
    with netns.enter():
        try:
            open("/proc/sys/net/ipv6/conf/all/disable_ipv6").close()
        except OSError:
            found["ipv6"] = "this kernel has no IPv6"
    return found
