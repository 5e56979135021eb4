"""Steps made of steps: ``one_of``, ``any_order``, ``optional``, ``repeat``.

They are handed *perform*, which interprets one inner step under its path.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from conform.case import model as m
from conform.case.expr import Expr
from conform.engine.calls import no_reply, under_way
from conform.engine.connections import Arrival, End
from conform.engine.endings import Senseless, StepFailed, Undecided
from conform.engine.matcher import FieldMatcher, describe, relative
from conform.engine.packets import Due, check_time, due_of, fit, keep, nothing_came, passed_over, take
from conform.engine.runtime import Allowed, PendingCall, Runtime, Script, too_late_to_tell
from conform.engine.state import possible, read_state
from conform.engine.timing import Interval, duration, exactly, judge
from conform.engine.verdict import Failure

#: Interprets one step, which is at a path.
Perform = Callable[[m.Step, str], Script]


@dataclass(slots=True)
class _Tried:
    """What came of holding an arrival against several expectations: the way that it goes, and which it does not fit."""

    way: Any = None
    refused: list[tuple[str, m.ExpectSpec, FieldMatcher]] = field(default_factory=list)

    @property
    def fits(self) -> bool:
        """Whether it goes one of the ways."""
        return self.way is not None


def in_order(steps: list[Any], path: str, perform: Perform) -> Script:
    """Perform *steps* one after the other, each under its index in *path*."""
    for index, step in enumerate(steps):
        yield from perform(step, f"{path}[{index}]")


# One of several ways -------------------------------------------------------------------------------------------------
def one_of(run: Runtime, step: m.OneOfStep, path: str, perform: Perform) -> Script:
    """The step ``one_of``: goes the way whose first step fits what the stack does.

    Raises StepFailed when none does, Undecided when that cannot be told, and Senseless.
    """
    begun = run.now
    chosen = yield from _choose(run, step)
    run.transcript.note(run.now, "chosen", step=path, branch=chosen.name)
    if isinstance(chosen.steps[0], m.ExpectStep):
        run.awaited = begun
    yield from in_order(chosen.steps, f"{path}.one_of.{chosen.name}", perform)
    if chosen.violates is not None:
        summary = f"the stack went the way {chosen.name!r}, which violates {chosen.violates}"
        failure = Failure(path, run.place, summary)
        run.violations.append(StepFailed(failure, (chosen.violates,)))


def _choose(run: Runtime, step: m.OneOfStep) -> Script:
    expects: list[tuple[m.Choice, m.ExpectSpec]] = []
    finishes: list[tuple[m.Choice, dict[str, m.Outcome]]] = []
    sleeps: list[tuple[m.Choice, PendingCall]] = []
    lasting: list[tuple[m.Choice, float]] = []
    momentary: list[m.Choice] = []
    reads: list[tuple[m.Choice, m.StateSpec]] = []
    for branch in step.one_of:
        match branch.steps[0]:
            case m.ExpectStep(expect=expect):
                expects.append((branch, expect))
            case m.FinishStep(finish=outcomes):
                finishes.append((branch, outcomes))
            case m.BlockedStep(blocked=name):
                sleeps.append((branch, under_way(run, name)))
            case m.SilenceStep(silence=silence) if isinstance(silence.for_, Expr):
                lasting.append((branch, run.seconds(silence.for_)))
            case m.SilenceStep():
                momentary.append(branch)
            case m.StateStep(state=state):
                reads.append((branch, state))
            case _:
                raise Senseless(f"the way {branch.name!r} begins with nothing by which it could be chosen")
    calls = [under_way(run, name) for _, outcomes in finishes for name in outcomes] + [p for _, p in sleeps]
    lasts = [(branch, run.event.high + seconds) for branch, seconds in lasting]
    deadlines = [due_of(run, spec).deadline for _, spec in expects] + [p.deadline for p in calls]
    deadline = max([*deadlines, *(until for _, until in lasts), run.now])
    names = [spec.conn for _, spec in expects] + ([m.CONNECTION] if lasting or momentary else [])
    ends = [run.ends[name] for name in dict.fromkeys(names)]
    if momentary or reads:
        yield from run.settle()
    while True:
        refused = None
        for end in ends:
            found = _chosen_by_arrival(run, end, expects, lasting)
            if isinstance(found, m.Choice):
                return found
            refused = refused or found
        if refused is not None and not (calls or reads):
            raise refused
        for branch, outcomes in finishes:
            pendings = [(under_way(run, name), outcome) for name, outcome in outcomes.items()]
            if all(p.action in run.replies for p, _ in pendings) and all(
                run.outcomes.fits(p, outcome) for p, outcome in pendings
            ):
                return branch
        for branch, pending in sleeps:
            if pending.action in run.blocked:
                return branch
        for branch, state in reads:
            actual = yield from read_state(run, state.conn)
            if actual in state.is_ or (actual is None and possible(run, state)):
                return branch
        if refused is None and any(end.queue for end in ends):
            continue  # it came while the state was read
        if momentary and refused is None:
            return momentary[0]
        passed = [branch for branch, until in lasts if run.looked >= until]
        if passed and refused is None:
            return passed[0]
        ended = [p for p in calls if p.action in run.replies]
        hopeless = calls and len(ended) == len(calls) and not (expects or lasts or momentary or reads)
        if hopeless or run.looked >= deadline or not (deadlines or lasts):
            for pending in calls:
                if pending.action not in run.replies and pending.action not in run.blocked:
                    raise no_reply(pending)
            ways = " or ".join(b.name for b in step.one_of)
            said = [
                f"{getattr(p.call, 'do', 'call')} ended with {run.outcomes.text(run.replies[p.action].reply)}"
                for p in ended
            ]
            actual = ", ".join(dict.fromkeys(said))
            what = f"the stack went none of the ways {ways}" + (f": {actual}" if actual else "")
            raise refused or run.fail(what, ways, actual or "none of them", passed_over(run, what))
        yield from run.wait(min([deadline, *(until for _, until in lasts if until > run.looked)]))


def _chosen_by_arrival(
    run: Runtime, end: End, expects: list[tuple[m.Choice, m.ExpectSpec]], lasting: list[tuple[m.Choice, float]]
) -> m.Choice | StepFailed | None:
    """The way that the oldest arrival on *end* goes, the failure if it goes none; ``None`` if nothing came."""
    if run.unknown:
        run.require_silence()
    own = [(branch, spec) for branch, spec in expects if spec.conn == end.connection.name]

    def hold(arrival: Arrival) -> _Tried:
        tried = _Tried()
        for branch, spec in own:
            found = fit(run, spec, arrival, end)
            if found.fits:
                tried.way = branch
                break
            tried.refused.append((branch.name, spec, found))
        return tried

    came = run.oldest(end, hold, _noise_of([spec for _, spec in own]))
    if came is None:
        return None
    arrival, tried = came
    if tried.fits:
        chosen: m.Choice = tried.way
        return chosen
    for branch, seconds in lasting:
        if run.came_after(seconds, arrival):
            return branch
    return _no_way(run, arrival, end, tried)


def _noise_of(specs: list[m.ExpectSpec]) -> list[Allowed]:
    """What is noise must be so to each of *specs*, and to the case where there is none."""
    return [spec.noise for spec in specs] or [None]


# Any order -----------------------------------------------------------------------------------------------------------
@dataclass(slots=True)
class _Expected:
    """One of several expectations in any order, and which arrival it has got so far."""

    step: m.ExpectStep
    path: str
    due: Due
    got: tuple[Arrival, dict[int, FieldMatcher]] | None = None


def any_order(run: Runtime, step: m.AnyOrderStep, path: str) -> Script:
    """The step ``any_order``: each of its expectations is met by one of the segments that come.

    Which by which is settled when all have come: each segment must only leave a way to meet all. None of them is the
    event before another. Raises StepFailed, Undecided, Senseless.
    """
    expected: list[_Expected] = []
    for index, inner in enumerate(step.any_order):
        if not isinstance(inner, m.ExpectStep) or inner.expect.stream is not None:
            raise Senseless("any_order holds a step that is no expectation of one segment")
        expected.append(_Expected(inner, f"{path}.any_order[{index}]", due_of(run, inner.expect)))
    deadline = max(each.due.deadline for each in expected)
    last = run.event
    while left := [each for each in expected if each.got is None]:
        came = _next_of_any(run, expected)
        if came is not None:
            end, arrival = came
            take(run, end, arrival)
            last = arrival.when
            continue
        if run.unknown:
            run.require_silence()
        if run.looked >= deadline:
            spec = left[0].step.expect
            raise nothing_came(run, spec, run.ends[spec.conn])
        yield from run.wait(deadline)
    for index, each in enumerate(expected):
        assert each.got is not None
        arrival, fits = each.got
        with run.at(each.step, each.path):
            check_time(run, each.step.expect, each.due, arrival)
            keep(run, each.step.expect, arrival, fits[index])
    run.event = last


def _next_of_any(run: Runtime, expected: list[_Expected]) -> tuple[End, Arrival] | None:
    """The oldest arrival, which one of *expected* has got now; ``None`` if there is none. Raises StepFailed."""
    for name in dict.fromkeys(each.step.expect.conn for each in expected):
        end = run.ends[name]
        own = [(index, each) for index, each in enumerate(expected) if each.step.expect.conn == name]

        def hold(arrival: Arrival, end: End = end, own: list[tuple[int, _Expected]] = own) -> _Tried:
            tried = _Tried()
            fits = {}
            for index, each in own:
                found = fit(run, each.step.expect, arrival, end)
                if found.fits:
                    fits[index] = found
                elif each.got is None:
                    tried.refused.append((f"[{index}]", each.step.expect, found))
            if _gets(expected, (arrival, fits), set()):
                tried.way = fits
            return tried

        left = [each.step.expect for _, each in own if each.got is None]
        came = run.oldest(end, hold, _noise_of(left))
        if came is not None:
            arrival, tried = came
            if not tried.fits:
                raise _no_way(run, arrival, end, tried)
            return end, arrival
    return None


def _gets(expected: list[_Expected], arrival: tuple[Arrival, dict[int, FieldMatcher]], tried: set[int]) -> bool:
    """Give *arrival* to one that it fits; who had another must find another (an augmenting path)."""
    for index in arrival[1]:
        if index not in tried:
            tried.add(index)
            before = expected[index].got
            if before is None or _gets(expected, before, tried):
                expected[index].got = arrival
                return True
    return False


def _no_way(run: Runtime, arrival: Arrival, end: End, tried: _Tried) -> StepFailed:
    env = run.environment(end.connection)
    words = tuple(f"not {name}: {mismatch.words}" for name, _, found in tried.refused for mismatch in found.mismatches)
    expected = "; or ".join(f"{name}: {describe(spec, env)}" for name, spec, _ in tried.refused) or "silence"
    return run.fail(
        f"the stack sent {arrival.segment}, which fits none of the ways",
        expected,
        relative(arrival.segment, end.connection),
        words,
        arrival.entry,
    )


# What may come, and how often ----------------------------------------------------------------------------------------
def optional(run: Runtime, steps: list[Any], path: str, perform: Perform) -> Script:
    """The step ``optional``: its steps, where what comes next fits the first. Raises Senseless."""
    if not isinstance(steps[0], m.ExpectStep):
        raise Senseless("optional begins with a step that is no expectation")
    taken = yield from _comes(run, steps[0].expect)
    run.transcript.note(run.now, "chosen", step=path, branch="taken" if taken else "passed over")
    if taken:
        yield from in_order(steps, f"{path}.optional", perform)


def _comes(run: Runtime, spec: m.ExpectSpec) -> Script:
    """Whether what comes next fits *spec*, and in its time, if it has one; else only what settling shows counts.

    Raises Undecided.
    """
    end = run.ends[spec.conn]
    timed = spec.within is not None or spec.between is not None or spec.after is not None
    begun = run.now
    deadline = due_of(run, spec).deadline
    if not timed:
        yield from run.settle()
        deadline = run.now
    came = yield from run.next_arrival(end, deadline, lambda arrival: fit(run, spec, arrival, end), spec.noise)
    if came is None or not came[1].fits:
        return False
    if timed:
        when = came[0].when
        judgment = judge(when, most=exactly(deadline))
        if judgment == "late?":
            raise too_late_to_tell(when, "it came in its time, which is optional,")
        if judgment == "late":
            return False
        run.awaited = begun
    return True


def repeat(run: Runtime, spec: m.RepeatSpec, path: str, perform: Perform) -> Script:
    """The step ``repeat``: its steps, several times, with a gap between. Raises StepFailed, Undecided, Senseless."""
    before: Interval | None = None
    outer, run.gap = run.gap, None
    first = spec.steps[0]
    for index in range(spec.times):
        if spec.at_least is not None and index >= spec.at_least:
            if not isinstance(first, m.ExpectStep):
                raise Senseless("what may come more often than at-least begins with a step that is no expectation")
            more = yield from _comes(run, first.expect)
            if not more:
                break
        yield from in_order(spec.steps, f"{path}.repeat[{index}]", perform)
        if spec.gap is not None:
            if before is not None:
                _check_gap(run, spec.gap, before, run.event)
            before = run.event
    run.gap, run.previous_gap = outer, None


def _check_gap(run: Runtime, gap: m.Gap, before: Interval, event: Interval) -> None:
    elapsed = event.since(before)
    previous, run.gap = run.gap, elapsed
    if previous is None and any(name == "previous" for name, _ in gap.is_.names):
        return  # the first gap has none before it
    bounds = []
    for run.previous_gap in (previous.low, previous.high) if previous is not None else (None,):
        bounds.append(run.seconds(gap.is_))
    low, high = min(bounds), max(bounds)
    low_slack, high_slack = (t * gap.tolerance / 100 + run.stack.tolerance for t in (low, high))
    least, most = Interval(low - low_slack, high - high_slack), Interval(low + low_slack, high + high_slack)
    judgment = judge(elapsed, least, most)
    came = f"{duration((elapsed.low + elapsed.high) / 2)} after the one before"
    if judgment in ("early", "late"):
        wanted = f"{duration((low + high) / 2)} ± {gap.tolerance} %"
        raise run.fail(f"it came {came}, want {wanted}", wanted, came)
    if judgment != "ok":
        raise Undecided(f"conform's loop was late; whether it came {came} is right cannot be told")
