"""Shipped cases against a stack that does less than RFC 9293 recommends: what is no MUST does not fail as one."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from fake_stack import Driver, ModelStack, Tcb, profile

from conform.case.load import load
from conform.engine.trial import Trial
from conform.engine.verdict import GATING, Verdict
from conform.requirements import catalogue
from conform.tcp.segment import ACK, Segment
from conform.tcp.sequence import add, diff

CASES = Path(__file__).parents[2] / "cases"


class Forgetful(ModelStack):
    """It takes what begins at RCV.NXT or before, and discards what lies beyond a gap (or, *kept*, holds it all)."""

    def __init__(self, kept: bool) -> None:
        super().__init__()
        self.kept = kept
        self.later: list[Segment] = []
        self.sleepless: set[str] = set()

    def text(self, tcb: Tcb, seg: Segment) -> None:
        before = diff(tcb.rcv_nxt, seg.seq)
        if before < 0 and seg.length:
            self.later.append(seg)
            self.emit(tcb, ACK)
            return
        fresh = min(before, len(seg.payload))
        trimmed = Segment(
            seg.ip, seg.sport, seg.dport, add(seg.seq, fresh), flags=seg.flags, payload=seg.payload[fresh:]
        )
        sent, self.out = self.out, []
        super().text(tcb, trimmed)
        while self.kept and (fitting := [s for s in self.later if diff(tcb.rcv_nxt, s.seq) >= 0]):
            self.later.remove(fitting[0])
            if diff(add(fitting[0].seq, fitting[0].length), tcb.rcv_nxt) > 0:
                self.out = []
                self.text(tcb, fitting[0])
        self.out = sent + self.out

    def call(self, request: dict[str, Any]) -> dict[str, Any] | None:
        if request["do"] == "set-nonblocking":
            self.sleepless.add(request["on"])
        reply = super().call(request)
        return {"error": "EAGAIN"} if reply is None and request.get("on") in self.sleepless else reply


def verdicts(name: str, kept: bool) -> list[Verdict]:
    """The verdict of each row of the shipped case *name*."""
    (case,) = load([CASES / f"{name}.yaml"]).cases
    levels = {key: GATING[each.level] for key, each in catalogue().items() if each.level in GATING}
    return [
        Driver(
            Trial(
                id=f"{name}.{row.id}.v4", case_id=name, file=f"{name}.yaml", ip=4, row=row.id, document=row.document,
                case=row.case, levels=levels, stack=profile(), seed=1,
            ),
            Forgetful(kept=kept),
        ).play().verdict
        for row in case.rows
    ]  # fmt: skip


KEEPING = ["sequence/reassembly", "sequence/window-across-the-wrap", "close/fin-beyond-a-gap"]


@pytest.mark.parametrize("name", KEEPING)
def test_what_lies_beyond_a_gap_should_be_kept_and_need_not_be(name: str) -> None:
    for verdict in verdicts(name, kept=False):
        assert (verdict.outcome, verdict.level, verdict.requirements) == ("fail", "should", ("9293-SHLD-31",)), verdict
    for verdict in verdicts(name, kept=True):
        assert verdict.outcome == "pass", verdict
