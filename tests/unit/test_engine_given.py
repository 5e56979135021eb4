"""The stack sends what its application gave, and a FIN only when it was asked: held against every segment."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from fake_stack import ESTABLISHED, SERVED, Driver, ModelStack, Tcb, Twist, also, alter, profile, run, shifted

from conform.case.vocabulary import CAPABILITIES
from conform.engine.given import EARLY_FIN, OCTETS, Given
from conform.tcp.segment import ACK, FIN, RST, SYN, IPFields, Segment
from conform.tcp.sequence import add

ISS = 0xFFFFFFFD


def segment(offset: int, payload: bytes = b"", flags: int = ACK) -> Segment:
    ip = IPFields(4, "192.0.2.1", "192.0.2.2")
    return Segment(ip=ip, sport=80, dport=5000, seq=add(ISS, 1 + offset), flags=flags, payload=payload)


def broken(given: Given, offset: int, payload: bytes = b"", flags: int = ACK, sent: int = 0) -> str | None:
    found = given.broken_by(segment(offset, payload, flags), ISS, add(ISS, 1 + sent))
    return found[0] if found is not None else None


def test_octets() -> None:
    given = Given()
    assert broken(given, 0) is None
    assert broken(given, 0, b"a") == OCTETS
    given.sends(1, b"hello")
    assert broken(given, 0, b"hel") is None
    assert broken(given, 3, b"lo", sent=3) is None
    assert broken(given, 3, b"lol", sent=3) == OCTETS
    assert broken(given, 0, b"hallo") == OCTETS
    given.sent(1, 3)
    assert broken(given, 0, b"hel") is None
    assert broken(given, 0, b"hell") == OCTETS
    given.sends(2, b"p!")
    assert broken(given, 2, b"lp!", sent=2) is None
    assert broken(given, 2, b"lo", sent=2) == OCTETS


def test_what_came_again_may_begin_in_what_was_given_before() -> None:
    given = Given()
    given.sends(1, b"hello")
    given.sent(1, 5)
    assert broken(given, 1, b"ello", sent=5) is None
    assert broken(given, -1, b"xhello", sent=5) is None  # by its number it is the SYN that came again


def test_calls_at_once_leave_open_whose_octets_go_first() -> None:
    given = Given()
    given.sends(1, b"ab")
    given.sent(1, 2)
    given.sends(2, b"cd")
    given.sends(3, b"ef")
    assert broken(given, 2, b"efcd", sent=2) is None
    assert broken(given, 2, b"efcdg", sent=2) == OCTETS
    assert broken(given, 0, b"bad", sent=2) == OCTETS


def test_a_call_that_failed_may_have_given_all_it_named() -> None:
    given = Given()
    given.sends(1, b"abc")
    given.sent(1, None)
    assert broken(given, 0, b"abc") is None
    assert broken(given, 0, b"abcd") == OCTETS
    given.sends(2, b"xyz")
    assert broken(given, 0, b"xyz") is None
    given.sent(9, 5)  # of another connection
    assert broken(given, 0, b"xyzabcd") == OCTETS


def test_a_keep_alives_octet_and_a_resets_text_are_no_data() -> None:
    given = Given()
    assert broken(given, -1, b"?") is None
    given.sends(1, b"ab")
    given.sent(1, 2)
    assert broken(given, 1, b"?", sent=2) is None
    assert broken(given, 2, b"?", sent=3) is None  # where its FIN is
    assert broken(given, 2, b"?", sent=2) == OCTETS
    assert broken(given, 0, b"why", RST | FIN) is None


def test_data_of_a_syn() -> None:
    given = Given()
    assert broken(given, -1, b"a", SYN) == OCTETS
    given.sends(1, b"a")
    assert broken(given, -1, b"a", SYN) is None


def test_fin() -> None:
    given = Given()
    assert broken(given, 0, flags=ACK | FIN) == EARLY_FIN
    given.may_end(1)
    given.may_end(2)
    given.may_not_end(1)
    assert broken(given, 0, flags=ACK | FIN) is None
    given.may_not_end(2)
    assert broken(given, 0, flags=ACK | FIN) == EARLY_FIN


# In a session --------------------------------------------------------------------------------------------------------
CLOSE: list[Any] = [{"call": "close"}, {"expect": {"flags": "FA", "seq": "SND.NXT", "ack": "RCV.NXT"}}]
DATA: list[Any] = [{"send": {"flags": "PA", "payload": "abc"}}, {"expect": {"flags": "A", "ack": "RCV.NXT"}}]


def said(driver: Driver) -> str:
    assert driver.verdict.outcome == "fail", driver.verdict
    assert driver.verdict.failure is not None
    return driver.verdict.failure.summary


class Leaks(ModelStack):
    """Puts octets that nobody wrote on its FIN and on its acknowledgments of data."""

    def send_data(self, tcb: Tcb, payload: bytes, flags: int = ACK) -> None:
        super().send_data(tcb, (b"junk" if flags & FIN else b"") + payload, flags)

    def text(self, tcb: Tcb, seg: Segment) -> None:
        super().text(tcb, seg)
        if self.out and seg.payload:
            self.out[-1] = (0.0, replace(self.out[-1][1], payload=b"heap"))
            tcb.snd_nxt = add(tcb.snd_nxt, 4)


@pytest.mark.parametrize("steps", [CLOSE, DATA])
def test_a_stack_that_sends_what_nobody_wrote(steps: list[Any]) -> None:
    driver = run(steps, stack=Leaks())
    assert said(driver) == (
        f"a segment breaks {OCTETS}: its octets go on to ISS+5, and the application has given none to send"
    )
    assert driver.verdict.requirements == (OCTETS,)
    assert run(steps).verdict.outcome == "pass"


def test_a_stack_whose_application_nobody_knows() -> None:
    assert run(DATA, stack=Leaks(), of=SERVED, liveness="port").verdict.outcome == "pass"
    alone = profile(capabilities=frozenset(CAPABILITIES) - {"calls"})
    assert run(DATA, stack=Leaks(), of=alone, liveness="port").verdict.outcome == "pass"


def test_octets_that_were_changed() -> None:
    steps = [{"call": {"do": "send", "payload": "hello"}}, {"expect": {"length": 5}}]
    assert said(run(steps, stack=ModelStack(twist=alter(1, payload=b"hellO")))).endswith("has given")
    assert run(steps).verdict.outcome == "pass"


def test_noise_is_held_against_it_too() -> None:
    twist = also(1, (0.0, {"payload": b"", "flags": FIN | ACK, "seq": shifted("seq", 5)}))
    probe: Twist = lambda n, s: [(0.0, s), (0.0, replace(s, seq=add(s.seq, 5), payload=b"x"))] if n == 1 else [(0.0, s)]  # noqa: E731
    steps = [{"call": {"do": "send", "payload": "hello"}}, {"expect": {"length": 5}}]
    closed = [*steps, {"send": {"flags": "A", "window": 0}}, {"expect": {"payload": "x"}}]
    assert said(run(closed, stack=ModelStack(twist=probe))).startswith("the stack sent A seq=1006")
    assert said(run([*steps, {"expect": {"flags": "FA"}}], stack=ModelStack(twist=twist))) == (
        f"a segment breaks {EARLY_FIN}: it has a FIN, and the application has not closed"
    )


def test_a_call_that_gave_less() -> None:
    steps = [{"call": {"do": "send", "payload": "hello", "returns": 2}}, {"expect": {"length": 5}}]
    assert said(run(steps, stack=Partial())).startswith(f"a segment breaks {OCTETS}: its octets go on to ISS+6")


class Partial(ModelStack):
    """Says that it took two octets, and sends all."""

    def call(self, request: dict[str, Any]) -> dict[str, Any] | None:
        reply = super().call(request)
        return {"returned": 2} if request["do"] == "send" else reply


class Ends(ModelStack):
    """Closes by itself when data comes."""

    def text(self, tcb: Tcb, seg: Segment) -> None:
        super().text(tcb, seg)
        if seg.payload:
            self.send_data(tcb, b"", FIN | ACK)


def test_a_fin_that_nobody_asked_for() -> None:
    steps = [*DATA, {"expect": {"flags": "FA", "seq": "SND.NXT"}}]
    driver = run(steps, stack=Ends(), liveness="port")
    assert said(driver).startswith(f"a segment breaks {EARLY_FIN}")
    assert run(steps, stack=Ends(), liveness="port", of=SERVED).verdict.outcome == "pass"


@pytest.mark.parametrize(
    ("steps", "asked"),
    [
        ([{"call": {"do": "shutdown", "how": "wr"}}], True),
        ([{"call": {"do": "shutdown", "how": "rd"}}], False),
        ([{"call": {"do": "dup", "as": "twin"}}, {"call": "close"}], False),
        ([{"call": {"do": "dup", "as": "twin"}}, {"call": {"do": "shutdown", "how": "wr", "on": "twin"}}], True),
        ([{"call": {"do": "fork", "as": "child"}}, {"call": {"do": "exit"}}], False),
        ([{"call": "exit"}], True),
        ([{"call": "kill"}], True),
        ([{"call": {"do": "kill", "with": "SIGURG"}}], False),
        ([{"call": {"do": "close", "on": "listener"}}], False),
    ],
)
def test_who_asks_for_a_fin(steps: list[Any], asked: bool) -> None:
    class Silent(ModelStack):
        def call(self, request: dict[str, Any]) -> dict[str, Any] | None:
            if request["do"] in ("shutdown", "close", "exit", "kill"):
                for tcb in self.tcbs.values():
                    self.send_data(tcb, b"", FIN | ACK)
                return {"returned": 0}
            return super().call(request)

    driver = run([*steps, {"expect": {"flags": "FA"}}], ESTABLISHED, Silent(), liveness="port")
    if asked:
        assert driver.verdict.outcome == "pass", driver.verdict
    else:
        assert said(driver).startswith(f"a segment breaks {EARLY_FIN}")


def test_a_fin_on_a_connection_that_nobody_accepted_when_its_listener_is_gone() -> None:
    class Ended(ModelStack):
        def call(self, request: dict[str, Any]) -> dict[str, Any] | None:
            reply = super().call(request)
            if request["do"] == "close":
                for tcb in self.tcbs.values():
                    self.send_data(tcb, b"", FIN | ACK)
            return reply

    steps = [{"call": {"do": "close", "on": "listener"}}, {"expect": {"flags": "FA"}}]
    assert run(steps, ESTABLISHED[:-1], Ended(), liveness="port").verdict.outcome == "pass"


CLOSING: list[Any] = [
    {"call": "close"},
    {"expect": {"flags": "FA", "as": "fin"}},
    {"send": {"flags": "A", "ack": "fin.end"}},
    {"send": {"flags": "FA"}},
    {"expect": {"flags": "A", "ack": "RCV.NXT"}},
    {"state": "TIME-WAIT"},
]
RESET: list[Any] = [{"send": {"flags": "R", "seq": "RCV.NXT"}}, {"state": "CLOSED"}]


@pytest.mark.parametrize("ends", [CLOSING, RESET])
def test_a_new_incarnation_has_nothing_of_the_old(ends: list[Any]) -> None:
    class Again(ModelStack):
        """Takes any SYN, with an ISS further on; and sends an octet of its own on the second connection."""

        def receive(self, seg: Segment) -> None:
            if seg.flags & SYN and self.tcbs:
                self.tcbs.clear()
                self.iss += 1000
                self.syn_options = ()
            super().receive(seg)
            if seg.payload == b"go":
                tcb = next(iter(self.tcbs.values()))
                self.send_data(tcb, b"hello")

    steps: list[Any] = [
        {"call": {"do": "send", "payload": "hello"}},
        {"expect": {"payload": "hello"}},
        *ends,
        {"send": {"flags": "S", "seq": "RCV.NXT + 5000"}},
        {"expect": {"flags": "SA"}},
        {"send": {"flags": "A"}},
        {"send": {"flags": "PA", "payload": "go"}},
        {"any_order": [{"expect": {"payload": "hello"}}, {"expect": {"flags": "A", "length": 0}}]},
    ]
    assert said(run(steps, stack=Again(), liveness="port")).startswith(f"a segment breaks {OCTETS}: its octets go on")
