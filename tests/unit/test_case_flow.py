"""The order of steps and the names in them: what is sound, and the corners that the golden files do not show."""

from __future__ import annotations

import pytest
from case_texts import messages, rows

SOUND = {
    "started close": "- start: {do: close, as: closing}\n- expect: {flags: FA}\n- finish: {closing: ok}",
    "closed on purpose": "- call: close\n- call: {do: recv, error: EBADF}",
    "accept again": "- call: close\n- send: {conn: c2, flags: S}\n- call: {do: accept, as: c1}",
    "both branches define": (
        "- one_of:\n    - {name: a, steps: [expect: {flags: FA, as: e}]}\n"
        "    - {name: b, steps: [expect: {flags: R, as: e}]}\n"
        "- check: {value: e.seq, is: SND.NXT}"
    ),
    "same name in branches and after": (
        "- one_of:\n    - {name: a, steps: [expect: {flags: FA, as: e}]}\n    - {name: b, steps: [silence: now]}\n"
        "- expect: {flags: A, as: e}\n- check: {value: e.seq, is: SND.NXT}"
    ),
    "capture in options and again": (
        "- expect: {flags: A, options: {ts: {val: {as: t0}}, mss: {as: m0}}}\n- check: {value: t0 + m0, is: '> 0'}"
    ),
    "capture in check": "- check: {value: SND.NXT, is: {as: now}}\n- send: {flags: A, ack: now}",
    "killed process ends its calls": (
        "- call: {do: fork, as: child}\n- start: {do: recv, by: child, as: r}\n- call: {do: kill, process: child}"
    ),
    "signal that does not kill": "- call: {do: kill, with: SIGURG}\n- call: close",
    "dup outlives": "- call: {do: dup, as: d}\n- call: close\n- call: {do: close, on: d}",
    "fork copies": "- call: {do: fork, as: k}\n- call: close\n- call: {do: close, by: k}",
    "an error makes nothing": "- call: {do: accept, as: c9, error: EAGAIN}\n- call: {do: socket, as: c9}",
    "struct options": (
        "- call: {do: getsockopt, option: SO_LINGER, returns: {onoff: true}}\n"
        "- call: {do: getsockopt, option: SO_RCVTIMEO, returns: {sec: 1, usec: '>= 0'}}\n"
        "- call: {do: setsockopt, option: SO_RCVTIMEO, value: {sec: 1, usec: 0}}\n"
        "- call: {do: getsockopt, option: SO_ERROR, returns: 0}\n"
        "- call: {do: getsockopt, option: TCP_CONGESTION, returns: reno}\n"
        "- call: {do: setsockopt, option: TCP_FASTOPEN_KEY, value: 00ff}\n"
        "- call: {do: setsockopt, option: TCP_MAXSEG, value: 536}"
    ),
    "as large as a packet": (
        "- send: {flags: A, payload: 65495, as: a}\n- send: {again: a, payload: 65483, options: {nop: 11}}"
    ),
    "a data offset that is wrong": (
        '- send: {flags: A, bad: {data-offset: 6}}\n- send: {flags: A, bad: {raw-options: "0101", data-offset: 5}}\n'
        "- send: {flags: S, conn: c2, options: {ts: {val: 1, ecr: 0}}}\n- expect: {conn: c2, flags: SA}\n"
        "- send: {flags: A, conn: c2, bad: {data-offset: 8}}\n- send: {flags: A, conn: c2, bad: {data-offset: 5}}"
    ),
    "sent again as it should have been": ("- send: {flags: A, bad: {checksum: 1}, as: a}\n- send: {again: a, bad: {}}"),
    "known once its SYN may have come": (
        "- send: {conn: c2, flags: S}\n- expect: {conn: c2, flags: [R, SA], seq: ISS}\n"
        "- send: {conn: c2, flags: A, ack: ISS}\n- check: {value: c2.SND.NXT, is: '> c2.ISS'}"
    ),
    "known on one of the ways": (
        "- send: {conn: c2, flags: S}\n- one_of:\n    - {name: a, steps: [expect: {conn: c2, flags: SA}]}\n"
        "    - {name: b, steps: [expect: {conn: c2, flags: RA}]}\n- send: {conn: c2, flags: A, ack: SND.NXT}"
    ),
    "an ICMP error": (
        "- call: {do: send, payload: 3}\n- expect: {length: 3, as: d}\n"
        "- send: {icmp: {type: net-unreachable, quotes: d, seq: SND.NXT}, ip: {ttl: 1}, conn: c1}"
    ),
    "a check that keeps": "- check: {value: 5, is: {as: five}}\n- check: {value: five, is: 5}",
    "a connect of the descriptor's connection": (
        "- send: {conn: c2, flags: S}\n- call: {do: socket, as: c2}\n- start: {do: connect, on: c2, as: x}\n"
        "- expect: {conn: c2, flags: S}\n- finish: {x: {error: EPIPE}}"
    ),
    "zero is what close returns": "- call: {do: close, returns: 0}",
    "another listener's state": (
        "- call: {do: socket, as: other}\n- call: {do: listen, on: other}\n- state: {is: LISTEN, conn: other}"
    ),
    "another connection by connect": (
        "- call: {do: socket, as: s}\n- start: {do: connect, on: s, conn: c3, as: connecting}\n"
        "- expect: {conn: c3, flags: S}\n- send: {flags: A, ack: c3.SND.NXT}\n- finish: {connecting: {error: EPIPE}}"
    ),
    "two calls of one name, one after the other": (
        "- start: {do: recv, as: r}\n- finish: {r: ok}\n- start: {do: recv, as: r}\n- finish: {r: ok}"
    ),
    "finished in every branch": (
        "- start: {do: recv, as: r}\n- one_of:\n    - {name: a, steps: [finish: {r: {returns: 0}}]}\n"
        "    - {name: b, steps: [{blocked: r}, {finish: {r: {error: EINTR}}}]}"
    ),
    "closed in every branch": (
        "- one_of:\n    - {name: a, steps: [{silence: now}, {call: close}]}\n"
        "    - {name: b, steps: [{expect: {flags: A}}, {call: close}]}\n"
        "- call: {do: recv, error: EBADF}"
    ),
    "repeated": (
        "- expect: {flags: A, as: a}\n- repeat: {times: 3, at-least: 1, steps: [expect: {again: a, as: b}], "
        "gap: {is: 2 * previous}}\n- check: {value: b.seq, is: a.seq}"
    ),
}


@pytest.mark.parametrize("steps", SOUND.values(), ids=SOUND)
def test_sound(steps: str) -> None:
    assert rows(steps)


WRONG = {
    "partial snapshot again": (
        "- optional:\n    expect: {flags: A, as: a}\n- expect: {again: a}",
        "there may be no snapshot 'a': the optional in line 5 may pass over what makes it",
    ),
    "partial process": (
        "- one_of:\n    - {name: a, steps: [{silence: now}, {call: {do: fork, as: k}}]}\n"
        "    - {name: b, steps: [expect: {flags: A}]}\n"
        "- call: {do: close, by: k}",
        "there may be no process 'k': the one_of in line 5 makes it only in a",
    ),
    "partial descriptor": (
        "- one_of:\n    - {name: a, steps: [{silence: now}, {call: close}]}\n"
        "    - {name: b, steps: [expect: {flags: A}]}\n"
        "- call: close",
        "'c1' may not be open: the one_of in line 5 leaves it open only on some ways",
    ),
    "closed on all ways": (
        "- one_of:\n    - {name: a, steps: [{silence: now}, {call: close}]}\n"
        "    - {name: b, steps: [{expect: {flags: A}}, {call: close}]}\n"
        "- call: close",
        "'c1' was closed in line 7",
    ),
    "ended on one way": (
        "- one_of:\n    - {name: a, steps: [{silence: now}, {call: exit}]}\n"
        "    - {name: b, steps: [expect: {flags: A}]}\n- call: close",
        "this call can never be made: the process main ended in line 6 (exit)",
    ),
    "partial within partial": (
        "- optional:\n    - expect: {flags: A}\n    - optional:\n        - expect: {flags: A, as: a}\n"
        "- check: {value: a.seq, is: 1}",
        "'a' may not be there: the optional in line 7 may pass over what makes it",
    ),
    "capture that may be missing": (
        "- optional:\n    expect: {flags: A, window: {as: w}}\n- check: {value: w, is: 1}",
        "'w' may not be there: the optional in line 5 may pass over what makes it",
    ),
    "call in an optional": (
        "- start: {do: recv, as: r}\n- optional:\n    - expect: {flags: A}\n    - finish: {r: ok}",
        "the call r is begun here and never finished on every way",
    ),
    "a call of that name": (
        "- start: {do: recv, as: r}\n- start: {do: recv, as: r}\n- finish: {r: ok}",
        "a call r is under way, begun in line 5",
    ),
    "what does not sleep": ("- start: {do: fork, as: k}\n- finish: {k: ok}", "fork does not sleep: make it a call"),
    "whole connection": (
        "- expect: {flags: A, seq: c1.SND.FOO}\n- expect: {flags: A, seq: c1}",
        "a connection has no 'SND.FOO': ask for c1.SND.UNA, c1.SND.NXT, c1.SND.WND, c1.RCV.NXT, c1.RCV.WND, c1.ISS, "
        "c1.IRS, c1.SND.MSS",
    ),
    "wrong struct": (
        "- call: {do: getsockopt, option: SO_LINGER, returns: {on: true}}",
        "SO_LINGER gives {onoff: true, linger: 0}, or some of it",
    ),
    "wrong text": ("- call: {do: getsockopt, option: TCP_CONGESTION, returns: 5}", "TCP_CONGESTION gives text"),
    "wrong boolean": (
        "- call: {do: getsockopt, option: TCP_NODELAY, returns: 1}",
        "TCP_NODELAY gives a boolean: true or false",
    ),
    "wrong hex": (
        "- call: {do: setsockopt, option: TCP_FASTOPEN_KEY, value: xyz}",
        "TCP_FASTOPEN_KEY takes octets as hexadecimal digits, in quotes",
    ),
    "bad comparison": ("- call: {do: recv, returns: '>= '}", "in '>= ': a value is missing here"),
    "duration": ("- call: {do: recv, returns: 5ms}", "recv returns a number of octets, not a duration"),
    "unknown connection": (
        "- send: {conn: cc1, flags: A}", "no SYN and no connect before this begins a connection 'cc1'"
    ),
    "unknown connection in state": (
        "- state: {is: CLOSED, conn: c7}", "no SYN and no connect before this begins a connection 'c7'"
    ),
    "unknown snapshot of time": (
        "- expect: {flags: A, within: 1s, from: x}",
        "no step before this names a segment 'x' (as: x)",
    ),
    "reserved in a name": (
        "- send: {flags: A, as: previous}",
        "'previous' has a meaning in expressions and cannot name a segment",
    ),
    "dup onto an open one": ("- call: {do: dup, as: listener}", "the name 'listener' is that of an open descriptor"),
    "unnamed accept": ("- call: accept", "the name 'c1' is that of an open descriptor"),
}  # fmt: skip


@pytest.mark.parametrize(("steps", "message"), WRONG.values(), ids=WRONG)
def test_wrong(steps: str, message: str) -> None:
    assert message in messages(steps)


def test_a_call_of_the_recipe_can_be_finished_and_need_not() -> None:
    assert rows("- silence: now", "given: SYN-SENT")
    assert rows("- send: {flags: RA}\n- finish: {connecting: {error: ECONNREFUSED}}", "given: SYN-SENT")
    assert messages("- finish: {connecting: ok}", "given: {state: ESTABLISHED, role: active}") == [
        "the call connecting is over since line 3"
    ]


def test_what_the_recipe_closed_is_closed() -> None:
    assert messages("- call: {do: send, payload: x}", "given: FIN-WAIT-1") == ["'c1' was closed in line 3"]
    assert rows("- call: {do: send, payload: x, error: EPIPE}", "given: {state: FIN-WAIT-1, by: shutdown}")
    assert messages("- call: close", "given: SYN-RECEIVED") == ["there is no descriptor 'c1'"]


def test_versions() -> None:
    assert rows("- send: {flags: A, ip: {flow: 5}}", "given: ESTABLISHED\nip: 6")
    assert rows("- send: {flags: A, ip: {ident: 5, df: false}}", "given: ESTABLISHED\nip: 4")
    assert messages(top="ip: 6\nrequires: ipv4") == ["ip: 6 leaves no trial to a case that requires ipv4"]


def test_a_sysctl_needs_linux() -> None:
    assert rows(top="requires: linux\nsysctl: {net.ipv4.tcp_sack: 0}")
    assert messages(top="sysctl: {net.ipv4.tcp_sack: 0}") == [
        "sysctl is Linux's own way: the case needs requires: linux"
    ]
