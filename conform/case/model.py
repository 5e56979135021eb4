"""The case format, version 1, as a model: what a case can say, and what each key means.

The JSON Schema (``conform schema``) and the reference in ``docs/case-format.md`` follow from this file. A validated
model *is* the intermediate form that the engine interprets: shorthands are gone, expressions are parsed, and each step
knows its place in the source. An importer of another format builds the same objects.
"""

from __future__ import annotations

import ipaddress
from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Discriminator, Field, PrivateAttr, Tag, model_validator

from conform.case import vocabulary as words
from conform.case.expr import Match
from conform.case.values import (
    Duration,
    DurationOr0,
    FlagChoice,
    FlagSet,
    Hex,
    Match4,
    Match6,
    Match8,
    Match16,
    Match20,
    Number,
    Number16,
    Optional8,
    Optional16,
    Payload,
    SequenceMatch,
    bad,
)

FORMAT_VERSION = 1

#: The key under which the loader puts a step's place, [line, column], into its mapping. Never written by a user.
PLACE = "@"

Name = Annotated[str, Field(pattern=r"^[A-Za-z_][A-Za-z0-9_]*(-[A-Za-z][A-Za-z0-9_]*)*$", max_length=40)]
Place = tuple[int, int]
StateName = Literal[
    "CLOSED", "LISTEN", "SYN-SENT", "SYN-RECEIVED", "ESTABLISHED", "FIN-WAIT-1", "FIN-WAIT-2", "CLOSE-WAIT",
    "CLOSING", "LAST-ACK", "TIME-WAIT",
]  # fmt: skip
Noise = Literal[
    "retransmission", "window-update", "duplicate-ack", "keep-alive", "zero-window-probe", "tail-loss-probe"
]  # fmt: skip
Octet = Annotated[int, Field(ge=0, le=255)]
U16 = Annotated[int, Field(ge=0, le=0xFFFF)]
U32 = Annotated[int, Field(ge=0, le=0xFFFFFFFF)]
Port = Annotated[int, Field(ge=1, le=65535)]

#: The names that every trial has without saying so: its first connection (and that connection's descriptor), its
#: listener's descriptor, its first process.
CONNECTION = "c1"
LISTENER = "listener"
PROCESS = "main"


class Model(BaseModel):
    """What all parts of a case share: unknown keys are errors, nothing is converted, nothing changes."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, populate_by_name=True)


def _listed(value: Any) -> Any:
    return value if isinstance(value, (list, tuple)) else [value]


Errnos = Annotated[list[Literal[words.ERRNOS]], BeforeValidator(_listed), Field(min_length=1)]  # type: ignore[valid-type]
Names = Annotated[list[Name], BeforeValidator(_listed), Field(min_length=1)]
Ids = Annotated[list[str], BeforeValidator(_listed)]
MsgFlags = Annotated[list[words.MsgFlag], BeforeValidator(_listed)]


#: What a header of 15 words, TCP's or IPv4's, leaves.
LONGEST_OPTIONS = 40


# Options -------------------------------------------------------------------------------------------------------------
#: Both edges of a SACK block: the first sequence number in it, and the first after it.
Block = Annotated[tuple[Number, Number], Field(strict=False)]


class TimestampsSpec(Model):
    """A timestamps option to send."""

    val: Number
    ecr: Number


class TimestampsMatch(Model):
    """What a timestamps option must hold."""

    val: SequenceMatch | None = None
    ecr: SequenceMatch | None = None


class UserTimeout(Model):
    """RFC 5482's user timeout."""

    timeout: Annotated[int, Field(ge=0, le=0x7FFF)]
    unit: Literal["seconds", "minutes"] = "seconds"


class UnknownOption(Model):
    """An option by number."""

    kind: Octet
    data: Hex = b""


class OptionsSpec(Model):
    """TCP options to send, in the order in which they are written. ``nop: 2`` puts two NOPs there."""

    mss: U16 | None = None
    window_scale: Annotated[Octet | None, Field(alias="window-scale")] = None
    sack_permitted: Annotated[Literal[True] | None, Field(alias="sack-permitted")] = None
    sack: Annotated[list[Block], Field(min_length=1, max_length=4)] | None = None
    ts: TimestampsSpec | None = None
    fast_open: Annotated[Hex | None, Field(alias="fast-open")] = None
    user_timeout: Annotated[UserTimeout | None, Field(alias="user-timeout")] = None
    md5: Hex | None = None
    nop: Annotated[int | None, Field(ge=1, le=40)] = None
    eol: Literal[True] | None = None
    unknown: Annotated[list[UnknownOption] | None, Field(max_length=20)] = None
    _order: tuple[str, ...] = PrivateAttr(())

    @model_validator(mode="wrap")
    @classmethod
    def _as_written(cls, value: Any, handler: Any) -> Any:
        made = handler(value)
        if isinstance(value, dict):
            made._order = tuple(value)
        return made

    @model_validator(mode="after")
    def _fit_the_header(self) -> OptionsSpec:
        if self.size > LONGEST_OPTIONS:
            raise bad(f"these options take {self.size} octets, and a TCP header has room for {LONGEST_OPTIONS}")
        for unknown in self.unknown or ():
            if unknown.kind < 2:
                raise bad("kinds 0 and 1 are one octet each, without data: write eol: true, or nop: 1")
        return self

    @property
    def size(self) -> int:
        """How many octets they take, not padded."""
        fixed = {"mss": 4, "window_scale": 3, "sack_permitted": 2, "ts": 10, "user_timeout": 4, "eol": 1}
        size = sum(octets for name, octets in fixed.items() if getattr(self, name) is not None)
        size += sum(2 + len(data) for data in (self.fast_open, self.md5) if data is not None)
        size += sum(2 + len(unknown.data) for unknown in self.unknown or ())
        return size + (2 + 8 * len(self.sack) if self.sack else 0) + (self.nop or 0)

    @property
    def order(self) -> tuple[str, ...]:
        """The keys in the order in which they were written, which is that of the options on the wire."""
        return self._order


class OptionsMatch(Model):
    """What the TCP options must be. An option that is not named may be there or not, unless ``only``."""

    mss: Optional16 | None = None
    window_scale: Annotated[Optional8 | None, Field(alias="window-scale")] = None
    sack_permitted: Annotated[bool | None, Field(alias="sack-permitted")] = None
    sack: Annotated[list[Block], Field(min_length=1, max_length=4)] | Literal["any", "absent"] | None = None
    ts: TimestampsMatch | Literal["any", "absent"] | None = None
    fast_open: Annotated[Hex | Literal["any", "absent"] | None, Field(alias="fast-open")] = None
    user_timeout: Annotated[UserTimeout | Literal["any", "absent"] | None, Field(alias="user-timeout")] = None
    md5: Literal["any", "absent"] | None = None
    unknown: Annotated[list[UnknownOption] | None, Field(min_length=1)] = None
    only: bool = False

    @model_validator(mode="after")
    def _says_something(self) -> OptionsMatch:
        if not self.only and not any(v is not None for n, v in self if n != "only"):
            raise bad("this says nothing of the options: name one, or write none to forbid all")
        return self


# What is sent --------------------------------------------------------------------------------------------------------
class BadFields(Model):
    """Header fields that are not what they should be."""

    checksum: U16 | None = None
    data_offset: Annotated[int | None, Field(alias="data-offset", ge=0, le=15)] = None
    reserved: Annotated[int, Field(ge=0, le=15)] = 0
    raw_options: Annotated[Hex | None, Field(alias="raw-options")] = None

    @model_validator(mode="after")
    def _fit_the_header(self) -> BadFields:
        if self.raw_options is not None and self.data_offset is None and len(self.raw_options) > LONGEST_OPTIONS:
            raise bad(
                f"raw-options has {len(self.raw_options)} octets, and a TCP header has room for {LONGEST_OPTIONS}: "
                "let data-offset say where it ends"
            )
        return self


def _address(value: Any) -> Any:
    if isinstance(value, str):
        try:
            ipaddress.ip_address(value)
        except ValueError:
            raise bad(
                f"{value[:60]!r} is no IP address: write it in digits, such as 192.0.2.7 or '2001:db8::7'"
            ) from None
        if "%" in value:
            raise bad(f"{value[:60]!r} has a zone, which no packet carries")
    return value


Address = Annotated[str, BeforeValidator(_address)]


class IPSpec(Model):
    """Fields of the IP header to send. ``ttl`` is IPv6's hop limit; ``ecn`` the codepoint."""

    ttl: Octet | None = None
    dscp: Annotated[int | None, Field(ge=0, le=63)] = None
    ecn: Literal["not-ect", "ect0", "ect1", "ce"] | None = None
    ident: U16 | None = None
    df: bool | None = None
    flow: Annotated[int | None, Field(ge=0, le=0xFFFFF)] = None
    options: Hex | None = None
    checksum: U16 | None = None
    src: Address | None = None
    dst: Address | None = None

    @model_validator(mode="after")
    def _fit_the_header(self) -> IPSpec:
        if self.options is not None and len(self.options) > LONGEST_OPTIONS:
            raise bad(f"options has {len(self.options)} octets, and an IPv4 header has room for {LONGEST_OPTIONS}")
        return self


class IPMatch(Model):
    """What fields of the IP header must be."""

    ttl: Match8 | None = None
    dscp: Match6 | None = None
    ecn: Literal["not-ect", "ect0", "ect1", "ce", "ect"] | None = None
    ident: Match16 | None = None
    df: bool | None = None
    flow: Match20 | None = None

    @model_validator(mode="after")
    def _says_something(self) -> IPMatch:
        if all(value is None or (isinstance(value, Match) and value.op == "any") for _, value in self):
            raise bad("this says nothing of the IP header: every packet fits it")
        return self


IcmpName = Literal[
    "net-unreachable", "host-unreachable", "protocol-unreachable", "port-unreachable", "fragmentation-needed",
    "source-route-failed", "admin-prohibited", "no-route", "address-unreachable", "packet-too-big", "source-quench",
    "time-exceeded", "reassembly-time-exceeded", "parameter-problem",
]  # fmt: skip


class IcmpSpec(Model):
    """An ICMP error about a segment that the stack sent. A name means its IPv4 or IPv6 form; or type and code."""

    type: IcmpName | Octet
    code: Octet | None = None
    quotes: Name
    quoted_length: Annotated[int | None, Field(alias="quoted-length", ge=0, le=1500)] = None
    mtu: U32 = 0
    pointer: U32 = 0
    seq: Annotated[Number | None, Field(description="the sequence number to put into the quotation")] = None


class PortsSpec(Model):
    """Ports other than the connection's own."""

    tester: Port | None = None
    stack: Port | None = None


class SegmentFields(Model):
    """What can be said of a segment to send; unsaid, it comes from the connection."""

    conn: Name = CONNECTION
    flags: FlagSet | None = None
    seq: Number | None = None
    ack: Number | None = None
    window: U16 | None = None
    urgent: Number16 | None = None
    payload: Payload | None = None
    options: OptionsSpec | Literal["none"] | None = None
    ip: IPSpec | None = None
    ports: PortsSpec | None = None
    bad: BadFields | None = None


class SendSpec(SegmentFields):
    """A packet for the tester to send."""

    again: Name | None = None
    icmp: IcmpSpec | None = None
    as_: Annotated[Name | None, Field(alias="as")] = None

    @model_validator(mode="after")
    def _one_kind(self) -> SendSpec:
        if self.icmp is not None and self.again is not None:
            raise bad("a packet is either sent again or an ICMP error, not both")
        if self.again is None and self.icmp is None and self.flags is None:
            raise bad("what is sent needs flags (or again: NAME, or icmp: …)")
        return self


# What is expected ----------------------------------------------------------------------------------------------------
class Timing(Model):
    """When something must happen, counted from the previous event or from a snapshot's time."""

    within: Duration | None = None
    after: Duration | None = None
    between: Annotated[tuple[DurationOr0, Duration], Field(strict=False)] | None = None
    from_: Annotated[Name | None, Field(alias="from")] = None

    @model_validator(mode="after")
    def _one_window(self) -> Timing:
        if self.between is not None and (self.within is not None or self.after is not None):
            raise bad("between already says within and after")
        least, most = self.between or (self.after, self.within)
        if least is not None and most is not None:
            low, high = least.constant, most.constant
            if low is not None and high is not None and low > high:
                raise bad(f"nothing comes at least {least.text.strip()} and at most {most.text.strip()} later")
        return self


def _says(value: Any) -> bool:
    """Whether there is a segment that does not fit *value*, what a case says of it."""
    return value is not None and not (isinstance(value, Match) and value.op in ("any", "capture"))


class ExpectSpec(Timing):
    """The next segment that the stack sends."""

    conn: Name = CONNECTION
    flags: FlagChoice | None = None
    seq: SequenceMatch | None = None
    ack: SequenceMatch | None = None
    window: Match16 | None = None
    urgent: Match16 | None = None
    payload: Payload | None = None
    length: Match16 | None = None
    options: OptionsMatch | Literal["none"] | None = None
    ip: IPMatch | None = None
    reserved: Match4 | None = None
    again: Name | None = None
    stream: Annotated[int | None, Field(ge=1, le=1 << 24)] = None
    noise: list[Noise] | Literal["forbid"] | None = None
    as_: Annotated[Name | None, Field(alias="as")] = None

    @model_validator(mode="after")
    def _says_something(self) -> ExpectSpec:
        own: tuple[Any, ...] = (self.flags, self.seq, self.ack, self.window, self.urgent, self.payload, self.length)
        own += (self.options, self.ip, self.reserved)
        if self.again is None and self.stream is None and not any(map(_says, own)):
            raise bad("an expectation says something of the segment: flags, seq, ack, payload, again, stream, …")
        if self.stream is not None and (self.again is not None or self.length is not None):
            raise bad("stream takes octets in any segmentation: length and again do not go with it")
        if self.payload is not None:
            size = len(self.payload)
            if self.stream is not None and self.stream != size:
                raise bad(f"stream is {self.stream} octets, and payload has {size}")
            if self.length is not None and self.length.among(size, size) == "none":
                raise bad(f"length is {self.length.text.strip()}, and payload has {size}")
        return self


# Calls ---------------------------------------------------------------------------------------------------------------
class Outcome(Model):
    """How a call must end. Unsaid, it must succeed."""

    returns: Any = None
    error: Errnos | None = None
    data: Payload | Literal["sent"] | None = None
    signal: Literal[words.SIGNALS] | None = None  # type: ignore[valid-type]
    msg_flags: Annotated[MsgFlags | None, Field(alias="msg-flags")] = None

    @model_validator(mode="after")
    def _not_both(self) -> Outcome:
        if self.error is not None and (self.returns is not None or self.data is not None):
            raise bad("a call that fails returns nothing: error does not go with returns or data")
        return self


class Call(Outcome):
    """What every call has: the process that makes it, a bound on how long it may take, its outcome."""

    by: Name = PROCESS
    timeout: Duration | None = None
    as_: Annotated[Name | None, Field(alias="as")] = None


class SocketCall(Call):
    do: Literal["socket"]


class BindCall(Call):
    do: Literal["bind"]
    on: Name = LISTENER
    port: Port | Literal["any"] | None = None
    address: Literal["any", "stack"] = "any"


class ListenCall(Call):
    do: Literal["listen"]
    on: Name = LISTENER
    backlog: Annotated[int, Field(ge=0, le=4096)] = 16


class AcceptCall(Call):
    do: Literal["accept"]
    on: Name = LISTENER


class ConnectCall(Call):
    do: Literal["connect"]
    on: Name = CONNECTION
    conn: Name | None = None


class SendCall(Call):
    do: Literal["send", "sendmsg"]
    on: Name = CONNECTION
    payload: Payload
    flags: MsgFlags = []


class RecvCall(Call):
    do: Literal["recv", "recvmsg"]
    on: Name = CONNECTION
    size: Annotated[int, Field(ge=0, le=1 << 24)] = 65536
    flags: MsgFlags = []


class ShutdownCall(Call):
    do: Literal["shutdown"]
    on: Name = CONNECTION
    how: Literal["rd", "wr", "rdwr"]


class CloseCall(Call):
    do: Literal["close"]
    on: Name = CONNECTION


OptionName = Literal[tuple(words.SOCKET_OPTIONS)]  # type: ignore[valid-type]


class SetsockoptCall(Call):
    do: Literal["setsockopt"]
    on: Name = CONNECTION
    option: OptionName  # type: ignore[valid-type]
    value: bool | int | str | dict[str, bool | int]


class GetsockoptCall(Call):
    do: Literal["getsockopt"]
    on: Name = CONNECTION
    option: OptionName  # type: ignore[valid-type]


class NameCall(Call):
    do: Literal["getsockname", "getpeername"]
    on: Name = CONNECTION


PollEvent = Literal["in", "out", "pri", "err", "hup", "rdhup"]


class PollCall(Call):
    do: Literal["poll"]
    on: Name = CONNECTION
    events: list[PollEvent]


class NonblockingCall(Call):
    do: Literal["set-nonblocking"]
    on: Name = CONNECTION
    value: bool = True


class ForkCall(Call):
    do: Literal["fork"]
    as_: Annotated[Name, Field(alias="as")]


class DupCall(Call):
    do: Literal["dup"]
    on: Name = CONNECTION
    as_: Annotated[Name, Field(alias="as")]


class KillCall(Call):
    do: Literal["kill"]
    process: Name = PROCESS
    with_: Annotated[Literal[words.SIGNALS], Field(alias="with")] = "SIGKILL"  # type: ignore[valid-type]


class ExitCall(Call):
    do: Literal["exit"]
    status: Octet = 0


_CALLS: dict[str, type[Call]] = {
    "socket": SocketCall, "bind": BindCall, "listen": ListenCall, "accept": AcceptCall, "connect": ConnectCall,
    "send": SendCall, "sendmsg": SendCall, "recv": RecvCall, "recvmsg": RecvCall, "shutdown": ShutdownCall,
    "close": CloseCall, "setsockopt": SetsockoptCall, "getsockopt": GetsockoptCall, "getsockname": NameCall,
    "getpeername": NameCall, "poll": PollCall, "set-nonblocking": NonblockingCall, "fork": ForkCall, "dup": DupCall,
    "kill": KillCall, "exit": ExitCall,
}  # fmt: skip
CALL_NAMES = tuple(_CALLS)


def _call_shorthand(value: Any) -> Any:
    return {"do": value} if isinstance(value, str) else value


def _call_tag(value: Any) -> str | None:
    do = value.get("do") if isinstance(value, dict) else getattr(value, "do", None)
    found = _CALLS.get(do) if isinstance(do, str) else None
    return found.__name__ if found else None


AnyCall = Annotated[
    Annotated[SocketCall, Tag("SocketCall")]
    | Annotated[BindCall, Tag("BindCall")]
    | Annotated[ListenCall, Tag("ListenCall")]
    | Annotated[AcceptCall, Tag("AcceptCall")]
    | Annotated[ConnectCall, Tag("ConnectCall")]
    | Annotated[SendCall, Tag("SendCall")]
    | Annotated[RecvCall, Tag("RecvCall")]
    | Annotated[ShutdownCall, Tag("ShutdownCall")]
    | Annotated[CloseCall, Tag("CloseCall")]
    | Annotated[SetsockoptCall, Tag("SetsockoptCall")]
    | Annotated[GetsockoptCall, Tag("GetsockoptCall")]
    | Annotated[NameCall, Tag("NameCall")]
    | Annotated[PollCall, Tag("PollCall")]
    | Annotated[NonblockingCall, Tag("NonblockingCall")]
    | Annotated[ForkCall, Tag("ForkCall")]
    | Annotated[DupCall, Tag("DupCall")]
    | Annotated[KillCall, Tag("KillCall")]
    | Annotated[ExitCall, Tag("ExitCall")],
    Discriminator(_call_tag),
    BeforeValidator(_call_shorthand),
]


# Steps ---------------------------------------------------------------------------------------------------------------
class Step(Model):
    """What every step can carry: why it is there, and the requirements that its failure breaks (else the case's)."""

    place: Annotated[Annotated[Place, Field(strict=False)] | None, Field(alias=PLACE, exclude=True)] = None
    why: str | None = None
    covers: Ids | None = None


class CallStep(Step):
    """A socket call, and its end awaited."""

    call: AnyCall


class StartStep(Step):
    """A socket call begun; ``blocked`` and ``finish`` refer to it by its ``as``."""

    start: AnyCall

    @model_validator(mode="after")
    def _named(self) -> StartStep:
        if self.start.as_ is None:
            raise bad("a call that is started needs a name: as: NAME")
        return self


class BlockedStep(Step):
    """The call started under that name sleeps: the agent says so, nobody guesses by delay."""

    blocked: Name


def _outcome_shorthand(value: Any) -> Any:
    return {} if value == "ok" else value


class FinishStep(Step):
    """Started calls end, each as said: ``{a1: ok}``."""

    finish: Annotated[dict[Name, Annotated[Outcome, BeforeValidator(_outcome_shorthand)]], Field(min_length=1)]


class SendStep(Step):
    """The tester sends a packet."""

    send: SendSpec


class ExpectStep(Step):
    """The stack's next segment on that connection is this one."""

    expect: ExpectSpec


class SilenceSpec(Model):
    """For how long nothing may come, noise aside."""

    for_: Annotated[Duration | Literal["now"], Field(alias="for")] = "now"
    noise: list[Noise] | Literal["forbid"] | None = None


def _silence_shorthand(value: Any) -> Any:
    return value if isinstance(value, dict) else {"for": value}


class SilenceStep(Step):
    """Nothing comes: ``now`` (after settling), or for a time."""

    silence: Annotated[SilenceSpec, BeforeValidator(_silence_shorthand)]


class StateSpec(Model):
    """The connection's state in the stack is (one of) these. ``conn: listener`` asks for the listener."""

    is_: Annotated[list[StateName], Field(alias="is", min_length=1), BeforeValidator(_listed)]
    conn: Name = CONNECTION
    within: Duration | None = None


def _state_shorthand(value: Any) -> Any:
    return value if isinstance(value, dict) else {"is": value}


class StateStep(Step):
    """The connection's state in the stack, read after settling; with ``within``, read again until it holds."""

    state: Annotated[StateSpec, BeforeValidator(_state_shorthand)]


class CheckStep(Step):
    """A comparison of what was captured: ``check: {value: new.seq, is: '> old.end'}``. Sequence numbers wrap."""

    check: CheckSpec


class CheckSpec(Model):
    value: Number
    is_: Annotated[SequenceMatch, Field(alias="is")]

    @model_validator(mode="after")
    def _can_fail(self) -> CheckSpec:
        if self.is_.op == "any":
            raise bad("every value fits any, so that this checks nothing")
        if self.is_.exprs and not any(expr.names for expr in (self.value, *self.is_.exprs)):
            raise bad("this compares numbers that are the same in every trial")
        if any(expr.text.strip() == self.value.text.strip() for expr in self.is_.exprs):
            raise bad(f"this compares {self.value.text.strip()} with itself")
        return self


class ProbeStep(Step):
    """The stack is alive, and so is its connection: it answers as its state demands."""

    probe: Literal["alive"]


class Choice(Model):
    """One way the stack may go. ``violates`` names the requirement that is broken by going it."""

    name: Name
    steps: Annotated[list[AnyStep], Field(min_length=1)]
    violates: str | None = None


class OneOfStep(Step):
    """The branch whose first step fits the first event is taken.

    A branch begins with expect, silence, state, finish or blocked.
    """

    one_of: Annotated[list[Choice], Field(min_length=2)]


class AnyOrderStep(Step):
    """Expectations, all of which are met, in whatever order."""

    any_order: Annotated[list[AnyStep], Field(min_length=2)]


class OptionalStep(Step):
    """Steps that are taken if the first (an expectation) fits what comes; else they are passed over."""

    optional: Annotated[list[AnyStep], Field(min_length=1), BeforeValidator(_listed)]


class Gap(Model):
    """The time from one repetition to the next: ``2 * previous`` within ``tolerance`` percent."""

    is_: Annotated[Duration, Field(alias="is")]
    tolerance: Annotated[int, Field(ge=0, le=100)] = 0


class RepeatSpec(Model):
    """Steps that come several times, at least ``at-least`` and at most ``times``."""

    times: Annotated[int, Field(ge=1, le=1000)]
    at_least: Annotated[int | None, Field(alias="at-least", ge=0)] = None
    steps: Annotated[list[AnyStep], Field(min_length=1)]
    gap: Gap | None = None

    @model_validator(mode="after")
    def _bounds(self) -> RepeatSpec:
        if self.at_least is not None and self.at_least > self.times:
            raise bad(f"at-least {self.at_least} is more than times {self.times}")
        if self.gap is not None:
            of_previous = any(name == "previous" for name, _ in self.gap.is_.names)
            if self.times < 2 + of_previous:
                why = "one round has none" if self.times == 1 else "two rounds have one, and none previous to it"
                raise bad(f"no gap is looked at: {why}")
        return self


class RepeatStep(Step):
    """The same steps several times."""

    repeat: RepeatSpec


STEP_KINDS: dict[str, type[Step]] = {
    "call": CallStep, "start": StartStep, "blocked": BlockedStep, "finish": FinishStep, "send": SendStep,
    "expect": ExpectStep, "silence": SilenceStep, "state": StateStep, "check": CheckStep, "probe": ProbeStep,
    "one_of": OneOfStep, "any_order": AnyOrderStep, "optional": OptionalStep, "repeat": RepeatStep,
}  # fmt: skip


def _step_tag(value: Any) -> str | None:
    if isinstance(value, Step):
        return type(value).__name__
    if not isinstance(value, dict):
        return None
    return next((STEP_KINDS[key].__name__ for key in value if key in STEP_KINDS), None)


AnyStep = Annotated[
    Annotated[CallStep, Tag("CallStep")]
    | Annotated[StartStep, Tag("StartStep")]
    | Annotated[BlockedStep, Tag("BlockedStep")]
    | Annotated[FinishStep, Tag("FinishStep")]
    | Annotated[SendStep, Tag("SendStep")]
    | Annotated[ExpectStep, Tag("ExpectStep")]
    | Annotated[SilenceStep, Tag("SilenceStep")]
    | Annotated[StateStep, Tag("StateStep")]
    | Annotated[CheckStep, Tag("CheckStep")]
    | Annotated[ProbeStep, Tag("ProbeStep")]
    | Annotated[OneOfStep, Tag("OneOfStep")]
    | Annotated[AnyOrderStep, Tag("AnyOrderStep")]
    | Annotated[OptionalStep, Tag("OptionalStep")]
    | Annotated[RepeatStep, Tag("RepeatStep")],
    Discriminator(_step_tag),
]


# The case ------------------------------------------------------------------------------------------------------------
class Given(Model):
    """The state in which the steps begin, and the way into it (docs/states.md has the recipes).

    ``role``: whether the stack opened actively or passively. ``accepted``: whether the application has accepted.
    ``by``: the call that closed the stack's side, where one did. ``via``: the state before, where there are two ways.
    ``options``: those of the tester's SYN or SYN,ACK.
    """

    state: StateName
    role: Literal["passive", "active"] = "passive"
    accepted: bool = True
    by: Literal["close", "shutdown"] = "close"
    via: StateName | None = None
    options: OptionsSpec | None = None


def _given_shorthand(value: Any) -> Any:
    return {"state": value} if isinstance(value, str) else value


class ConnectionSpec(Model):
    """The tester's end of a connection.

    Unsaid: an ISN from the seed, the tester's address, a port of its own, the first listener's port.
    """

    isn: U32 | None = None
    address: Address | None = None
    port: Port | None = None
    stack_port: Annotated[Port | None, Field(alias="stack-port")] = None
    window: U16 = 65535


SettingName = Literal[tuple(words.SETTINGS)]  # type: ignore[valid-type]
CapabilityName = Literal[tuple(words.CAPABILITIES)]  # type: ignore[valid-type]


class Matrix(Model):
    """The rows over which the case is repeated; gone from a case that was expanded."""

    axes: Annotated[dict[Name, list[Any]], Field(min_length=1)] | None = None
    rows: Annotated[list[dict[str, Any]], Field(min_length=1)] | None = None
    except_: Annotated[list[dict[str, Any]] | None, Field(alias="except", min_length=1)] = None


class Case(Model):
    """One case: what it says of the stack, and the steps that show it."""

    format: Literal[1] = 1
    title: Annotated[str, Field(min_length=10, max_length=200)]
    why: str | None = None
    covers: Annotated[Ids, Field(min_length=1)]
    tags: list[Name] = []
    ip: Literal[4, 6, "both"] = "both"
    requires: Annotated[list[CapabilityName], BeforeValidator(_listed)] = []  # type: ignore[valid-type]
    settings: dict[SettingName, bool | int | str] = {}  # type: ignore[valid-type]
    sysctl: dict[Annotated[str, Field(pattern=r"^net\.[a-z0-9_.]+$")], int | str] = {}
    given: Annotated[Given, BeforeValidator(_given_shorthand)] = Given(state="CLOSED")
    connections: dict[Name, ConnectionSpec] = {}
    templates: dict[Name, dict[str, Any]] = {}
    matrix: Matrix | None = None
    noise: list[Noise] | None = None
    liveness: Literal["connection", "port"] = "connection"
    steps: Annotated[list[AnyStep], Field(min_length=1)]
    recipe: Annotated[list[AnyStep], Field(exclude=True, description="how given is reached; filled in by conform")] = []


for _model in (CheckStep, Choice, OneOfStep, AnyOrderStep, OptionalStep, RepeatSpec, RepeatStep, Case):
    _model.model_rebuild()
