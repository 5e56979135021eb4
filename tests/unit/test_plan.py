"""From cases to trials: ids, versions, rows, repetitions, and what is not applicable."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from conform.case.expr import TIMERS
from conform.case.model import Case
from conform.case.vocabulary import CAPABILITIES
from conform.engine.trial import StackProfile
from conform.run import plan
from conform.run.lines import pcap_name
from conform.run.select import Selection

ADDRESSES = {4: ("192.0.2.1", "192.0.2.2"), 6: ("2001:db8::1", "2001:db8::2")}


@dataclass
class Stack:
    lacking: frozenset[str] = frozenset()
    setting: str | None = None
    reasons: dict[str, str] = field(default_factory=dict)

    @property
    def profile(self) -> StackProfile:
        have = frozenset(CAPABILITIES) - self.lacking
        addresses = {v: pair for v, pair in ADDRESSES.items() if f"ipv{v}" in have}
        return StackProfile("toy", have, dict.fromkeys(TIMERS, 60.0), 0.02, "fence", addresses)

    def lacks(self, case: Case) -> str | None:
        return self.setting if case.settings else None

    def why(self, capability: str) -> str | None:
        return self.reasons.get(capability)


@dataclass
class Row:
    id: str
    document: dict[str, Any]

    @property
    def case(self) -> Case:
        return Case.model_validate(self.document)


@dataclass
class Loaded:
    case_id: str
    rows: list[Row]
    path: Path = Path("cases/x.yaml")


def _document(**changes: Any) -> dict[str, Any]:
    return {
        "title": "A case to be planned here",
        "covers": ["9293-MUST-1"],
        "steps": [{"state": {"is": ["CLOSED"]}}],
    } | changes


def _case(name: str, *rows: str, **changes: Any) -> Loaded:
    return Loaded(name, [Row(row, _document(**changes)) for row in rows or ("",)], Path(f"cases/{name}.yaml"))


LEVELS = {"9293-MUST-1": "must", "9293-SHLD-2": "should", "9293-MAY-3": "may"}


def _reason(case: Loaded, stack: Stack) -> list[str | None]:
    return [trial.not_applicable for trial in plan.build([case], stack, LEVELS).trials]


def test_ids_are_case_row_and_version_in_order() -> None:
    planned = plan.build([_case("b/two", "x", "y"), _case("a/one", ip=6)], Stack(), LEVELS)
    assert list(planned.ids()) == ["b/two.x.v4", "b/two.x.v6", "b/two.y.v4", "b/two.y.v6", "a/one.v6"]
    trial = planned.trial(1)
    assert (trial.id, trial.case_id, trial.row, trial.ip) == ("b/two.x.v6", "b/two", "x", 6)
    assert trial.levels == {"9293-MUST-1": "must"}
    assert trial.file == "cases/b/two.yaml"


def test_one_version() -> None:
    planned = plan.build([_case("a", ip="both"), _case("b", ip=6)], Stack(), LEVELS, versions=(4,))
    assert list(planned.ids()) == ["a.v4"]


def test_repetitions_are_numbered_and_share_the_rest() -> None:
    planned = plan.build([_case("a"), _case("b")], Stack(), LEVELS, versions=(4,), repeat=3)
    assert len(planned) == 6
    assert list(planned.ids()) == ["a.v4#1", "b.v4#1", "a.v4#2", "b.v4#2", "a.v4#3", "b.v4#3"]
    assert planned.trial(4).id == "a.v4#3"
    assert planned.trial(4).document is planned.trial(0).document


def test_selection_by_id_and_by_case() -> None:
    cases = [_case("a", "x", "y", tags=["slow"]), _case("b", covers=["9293-SHLD-2"])]

    def ids(**options: Any) -> list[str]:
        return list(plan.build(cases, Stack(), LEVELS, versions=(4,), selection=Selection(**options)).ids())

    assert ids(keyword="x or b") == ["a.x.v4", "b.v4"]
    assert ids(tags=("slow",)) == ["a.x.v4", "a.y.v4"]
    assert ids(requirements=("9293-shld-2",)) == ["b.v4"]
    assert ids(levels=("should",)) == ["b.v4"]
    assert ids(only={"a.y.v4"}) == ["a.y.v4"]
    assert ids(keyword="nothing") == []


def test_what_was_there_to_select_from() -> None:
    planned = plan.build([_case("a")], Stack(), LEVELS, selection=Selection(keyword="zzz"))
    assert (len(planned), planned.known) == (0, 2)


def test_two_trials_of_one_id_cannot_be() -> None:
    with pytest.raises(plan.PlanError, match=r"both give the trial A\.v4"):
        plan.build([_case("a"), _case("A")], Stack(), LEVELS)


def test_requirements_are_found_wherever_they_are_named() -> None:
    document = _document(
        covers="9293-MUST-1",
        steps=[
            {"send": {"flags": "S"}, "covers": "9293-SHLD-2"},
            {
                "one_of": [
                    {
                        "name": "a",
                        "violates": "9293-MAY-3",
                        "steps": [{"probe": "alive", "covers": ["X", "9293-MUST-1"]}],
                    }
                ]
            },
        ],
    )
    assert plan.requirements(document) == ["9293-MUST-1", "9293-SHLD-2", "9293-MAY-3", "X"]


@pytest.mark.parametrize(
    ("changes", "lacking"),
    [
        ({"requires": ["sack"]}, "sack"),
        ({"sysctl": {"net.ipv4.tcp_sack": 0}}, "linux"),
        ({"steps": [{"call": "close"}]}, "calls"),
        ({"steps": [{"call": {"do": "fork", "as": "child"}}]}, "fork"),
        ({"steps": [{"call": {"do": "dup", "as": "d"}}]}, "dup"),
        ({"steps": [{"call": {"do": "kill"}}]}, "kill"),
        ({"steps": [{"call": {"do": "exit"}}]}, "kill"),
        ({"steps": [{"start": {"do": "accept", "as": "a"}}]}, "overlap"),
        ({"recipe": [{"call": "socket"}]}, "calls"),
        ({"recipe": [{"call": {"do": "shutdown", "how": "wr"}}]}, "half-close"),
        ({"given": {"state": "SYN-RECEIVED", "role": "active"}}, "simultaneous-open"),
        ({"steps": [{"repeat": {"times": 2, "steps": [{"call": "close"}]}}]}, "calls"),
        ({"steps": [{"optional": [{"expect": {"flags": "A"}}, {"call": "close"}]}]}, "calls"),
    ],
)
def test_what_the_stack_cannot_do_is_not_applicable(changes: dict[str, Any], lacking: str) -> None:
    case = _case("a", **changes)
    assert _reason(case, Stack()) == [None, None]
    for reason in _reason(case, Stack(lacking=frozenset({lacking}))):
        assert reason is not None
        assert reason.startswith(f"{lacking} (")
        assert "toy cannot do that" in reason
    why = Stack(frozenset({lacking}), reasons={lacking: "this kernel is old"})
    assert "this kernel is old" in str(_reason(case, why)[0])


def test_a_call_of_the_cases_own_shows_that_shutdown_sends_nothing() -> None:
    case = _case("a", steps=[{"call": {"do": "shutdown", "how": "wr"}}])
    assert _reason(case, Stack(lacking=frozenset({"half-close"}))) == [None, None]


def test_a_setting_that_cannot_be_made_is_not_applicable() -> None:
    case = _case("a", settings={"sack": "off"})
    assert _reason(case, Stack(setting="toy has no way to set sack")) == ["toy has no way to set sack"] * 2


def test_a_version_that_is_not_there_is_not_applicable() -> None:
    stack = Stack(frozenset({"ipv6"}), reasons={"ipv6": "this kernel has no IPv6"})
    assert _reason(_case("a"), stack) == [None, "this kernel has no IPv6"]
    assert _reason(_case("a"), Stack(frozenset({"ipv4"}))) == ["toy has no IPv4", None]


def test_an_mtu_that_ipv6_cannot_have_is_not_applicable_to_it() -> None:
    assert _reason(_case("a", settings={"mtu": 576}), Stack()) == [
        None,
        "IPv6 needs an MTU of 1280 octets (RFC 8200 section 5), and the case sets 576",
    ]
    assert _reason(_case("a", settings={"mtu": 1280}), Stack()) == [None, None]


def test_what_waits_long_is_begun_first() -> None:
    cases = [
        _case("quick"),
        _case("waits", steps=[{"silence": "2s"}]),
        _case("longest", steps=[{"repeat": {"times": 1, "steps": [{"silence": {"for": "timer.msl + 1s"}}]}}]),
        _case("bounded", steps=[{"expect": {"flags": "A", "within": "90s"}}]),
        _case("late", steps=[{"expect": {"flags": "A", "between": ["5s", "90s"]}}]),
    ]
    planned = plan.build(cases, Stack(), LEVELS, versions=(4,), repeat=2)
    order = [planned.id(index) for index in planned.dispatch()]
    assert order == [
        "longest.v4#1", "longest.v4#2", "late.v4#1", "late.v4#2", "waits.v4#1", "waits.v4#2",
        "quick.v4#1", "bounded.v4#1", "quick.v4#2", "bounded.v4#2",
    ]  # fmt: skip


def test_capture_names_suit_every_file_system() -> None:
    assert pcap_name("close/active.FIN-WAIT-2.v4") == "pcap/close--active.FIN-WAIT-2.v4.pcapng"
    assert pcap_name("close/a.v4#12") == "pcap/close--a.v4--n12.pcapng"
    odd = pcap_name("sequence/+RCV.WND:<x>?.v4").removeprefix("pcap/")
    assert not set(odd) & set('/\\:*?"<>|+ ')
    assert pcap_name("aux.v4").startswith("pcap/_aux.v4-")
    long = [pcap_name(f"a/{'x' * 300}{tail}.v4") for tail in "ab"]
    assert len(set(long)) == 2
    assert all(len(name) < 200 for name in long)
    assert pcap_name("a/b?.v4") != pcap_name("a/b*.v4")
