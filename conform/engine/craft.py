"""Packets for the tester to send: what a case says of one, and what comes from the connection where it says nothing."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

from conform.case import model as m
from conform.engine.endings import Senseless
from conform.engine.matcher import ECN_CODEPOINTS
from conform.tcp.segment import ACK, SYN, IcmpError, IPFields, Option, Packet, Segment
from conform.tcp.sequence import MODULUS, lt
from conform.tcp.tracker import Connection

if TYPE_CHECKING:
    from conform.engine.runtime import Runtime

#: Where the tester's timestamp clock stands at a trial's start; it ticks every millisecond.
TIMESTAMP_BASE = 1_000_000

#: name -> IP version -> (type, code): RFC 792, RFC 1122 section 3.2.2.1, RFC 4443.
ICMP_TYPES: dict[str, dict[int, tuple[int, int]]] = {
    "net-unreachable": {4: (3, 0), 6: (1, 0)},
    "host-unreachable": {4: (3, 1), 6: (1, 3)},
    "protocol-unreachable": {4: (3, 2), 6: (4, 1)},
    "port-unreachable": {4: (3, 3), 6: (1, 4)},
    "fragmentation-needed": {4: (3, 4), 6: (2, 0)},
    "packet-too-big": {4: (3, 4), 6: (2, 0)},
    "source-route-failed": {4: (3, 5)},
    "admin-prohibited": {4: (3, 13), 6: (1, 1)},
    "no-route": {4: (3, 0), 6: (1, 0)},
    "address-unreachable": {4: (3, 1), 6: (1, 3)},
    "source-quench": {4: (4, 0)},
    "time-exceeded": {4: (11, 0), 6: (3, 0)},
    "reassembly-time-exceeded": {4: (11, 1), 6: (3, 1)},
    "parameter-problem": {4: (12, 0), 6: (4, 0)},
}


class Craft:
    """Makes the packets of one trial."""

    def __init__(self, run: Runtime) -> None:
        self._run = run

    def packet(self, spec: m.SendSpec, connection: Connection) -> Packet:
        """The packet that *spec* describes. Raises LookupError when an expression has no value yet."""
        if spec.icmp is not None:
            return self._icmp(spec, spec.icmp)
        run = self._run
        env = run.environment(connection)
        changes: dict[str, Any] = {}
        if spec.flags is not None:
            changes["flags"] = spec.flags.bits
        if spec.seq is not None:
            changes["seq"] = env.sequence(spec.seq, connection.irs)
        if spec.ack is not None:
            changes["ack"] = env.sequence(spec.ack, connection.iss)
        if spec.window is not None:
            changes["window"] = spec.window
        if spec.urgent is not None:
            changes["urgent"] = int(env.value(spec.urgent)) & 0xFFFF
        if spec.payload is not None:
            changes["payload"] = spec.payload
        if spec.options is not None:
            changes["options"] = () if isinstance(spec.options, str) else self.options(spec.options, connection)
        if spec.again is not None:
            segment = replace(run.snapshot(spec.again).segment, **changes)
        else:
            segment = self.segment(connection, **changes)
        if spec.ports is not None:
            segment = replace(
                segment, sport=spec.ports.tester or segment.sport, dport=spec.ports.stack or segment.dport
            )
        if spec.ip is not None:
            segment = replace(segment, ip=self._ip(segment.ip, spec.ip))
        if spec.bad is not None:
            segment = replace(
                segment,
                checksum=spec.bad.checksum,
                data_offset=spec.bad.data_offset,
                reserved=spec.bad.reserved,
                raw_options=spec.bad.raw_options,
            )
        return segment

    def segment(self, connection: Connection, **fields: Any) -> Segment:
        """A segment with *fields*, the rest from *connection*."""
        flags = fields.get("flags", ACK)
        fields.setdefault("seq", connection.tester_nxt)
        if flags & ACK and connection.iss is not None:
            fields.setdefault("ack", connection.snd_nxt)
        fields.setdefault("window", connection.window)
        if "options" not in fields and connection.timestamps and not flags & SYN:
            fields["options"] = (Option("ts", (self._clock(connection), connection.last_tsval if flags & ACK else 0)),)
        port = connection.stack_port or self._run.stack.port
        ip = self._run.ends.ip(self._run.ends[connection.name])
        return Segment(ip=ip, sport=connection.tester_port, dport=port, **fields)

    def _clock(self, connection: Connection) -> int:
        """TSval now: never behind one that the case has sent itself, which PAWS would refuse (RFC 7323 section 5)."""
        clock = (TIMESTAMP_BASE + int(self._run.now * 1000)) % MODULUS
        return connection.ts_recent if lt(clock, connection.ts_recent) else clock

    def options(self, spec: m.OptionsSpec, connection: Connection) -> tuple[Option, ...]:
        """The options of *spec*, in the order in which they were written."""
        env = self._run.environment(connection)
        out: list[Option] = []
        for name in spec.order:
            match name:
                case "mss":
                    out.append(Option("mss", spec.mss))
                case "window-scale":
                    out.append(Option("window-scale", spec.window_scale))
                case "sack-permitted":
                    out.append(Option("sack-permitted"))
                case "sack":
                    iss = connection.iss
                    blocks = tuple((env.sequence(a, iss), env.sequence(b, iss)) for a, b in spec.sack or ())
                    out.append(Option("sack", blocks))
                case "ts":
                    assert spec.ts is not None
                    val, ecr = (int(env.value(e)) % MODULUS for e in (spec.ts.val, spec.ts.ecr))
                    out.append(Option("ts", (val, ecr)))
                case "fast-open":
                    out.append(Option("fast-open", spec.fast_open))
                case "user-timeout":
                    assert spec.user_timeout is not None
                    out.append(
                        Option("user-timeout", (int(spec.user_timeout.unit == "minutes"), spec.user_timeout.timeout))
                    )
                case "md5":
                    out.append(Option("md5", spec.md5))
                case "nop":
                    out += [Option("nop")] * (spec.nop or 0)
                case "eol":
                    out.append(Option("eol"))
                case "unknown":
                    out += [Option(f"kind-{u.kind}", u.data) for u in spec.unknown or ()]
        return tuple(out)

    @staticmethod
    def _ip(ip: IPFields, spec: m.IPSpec) -> IPFields:
        changes = {k: v for k, v in spec.model_dump(exclude={"ecn"}).items() if v is not None}
        if spec.ecn is not None:
            changes["ecn"] = ECN_CODEPOINTS[spec.ecn]
        return replace(ip, **changes)

    def _icmp(self, spec: m.SendSpec, icmp: m.IcmpSpec) -> IcmpError:
        version = self._run.trial.ip
        if isinstance(icmp.type, str):
            found = ICMP_TYPES[icmp.type].get(version)
            if found is None:
                raise Senseless(f"IPv{version} has no ICMP error {icmp.type}")
            kind, code = found
            code = icmp.code if icmp.code is not None else code
        else:
            kind, code = icmp.type, icmp.code or 0
        quoted = self._run.snapshot(icmp.quotes).segment
        if icmp.seq is not None:
            connection = self._run.connection(spec.conn)
            env = self._run.environment(connection)
            quoted = replace(quoted, seq=env.sequence(icmp.seq, connection.iss))
        ip = self._run.ends.ip(self._run.ends[spec.conn])
        if spec.ip is not None:
            ip = self._ip(ip, spec.ip)
        return IcmpError(ip, kind, code, quoted, icmp.mtu, icmp.pointer, icmp.quoted_length)
