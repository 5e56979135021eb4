"""Steps made of steps: ``one_of``, ``any_order``, ``optional``, ``repeat``.

They are handed *perform*, which interprets one inner step under its path.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from conform.case import model as m
from conform.case.expr import Expr
from conform.engine.calls import no_reply, under_way
from conform.engine.craft import Senseless
from conform.engine.matcher import FieldMatcher, describe
from conform.engine.packets import deadline_of, fit, nothing_came
from conform.engine.runtime import (
    Arrival,
    Interval,
    PendingCall,
    Runtime,
    Script,
    StepFailed,
    Undecided,
    duration,
    relative,
)
from conform.engine.state import possible, read_state
from conform.engine.verdict import Failure
from conform.tcp.tracker import Connection

#: Interprets one step, which is at a path.
Perform = Callable[[m.Step, str], Script]

#: What was held against an arrival that may go several ways: the way's name, its expectation, what came of it.
_Tried = tuple[str, m.ExpectSpec, FieldMatcher]


def in_order(steps: list[Any], path: str, perform: Perform) -> Script:
    """Perform *steps* one after the other, each under its index in *path*."""
    for index, step in enumerate(steps):
        yield from perform(step, f"{path}[{index}]")


# One of several ways -------------------------------------------------------------------------------------------------
def one_of(run: Runtime, step: m.OneOfStep, path: str, perform: Perform) -> Script:
    """The step ``one_of``: goes the way whose first step fits what the stack does.

    Raises StepFailed when none does, Undecided when that cannot be told, and Senseless.
    """
    chosen = yield from _choose(run, step)
    run.transcript.note(run.now, "chosen", step=path, branch=chosen.name)
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
    ends = [(branch, run.event.high + seconds) for branch, seconds in lasting]
    deadlines = [deadline_of(run, spec) for _, spec in expects] + [p.deadline for p in calls]
    deadline = max([*deadlines, *(until for _, until in ends), run.now])
    names = [spec.conn for _, spec in expects] + ([m.CONNECTION] if lasting or momentary else [])
    queues = [run.queues[run.connection(name).name] for name in dict.fromkeys(names)]
    if momentary or reads:
        yield from run.settle()
    while True:
        refused = None
        for name in dict.fromkeys(names):
            found = _chosen_by_arrival(run, name, expects, lasting)
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
        if refused is None and any(queues):
            continue  # it came while the state was read
        if momentary and refused is None:
            return momentary[0]
        passed = [branch for branch, until in ends if run.looked >= until]
        if passed and refused is None:
            return passed[0]
        if run.looked >= deadline or not (deadlines or ends):
            for pending in calls:
                if pending.action not in run.replies and pending.action not in run.blocked:
                    raise no_reply(pending)
            ways = " or ".join(b.name for b in step.one_of)
            raise refused or run.fail(f"the stack went none of the ways {ways}", ways, "none of them")
        yield from run.wait(min([deadline, *(until for _, until in ends if until > run.looked)]))


def _chosen_by_arrival(
    run: Runtime, name: str, expects: list[tuple[m.Choice, m.ExpectSpec]], lasting: list[tuple[m.Choice, float]]
) -> m.Choice | StepFailed | None:
    """The way that the oldest arrival on *name* fits, the failure if it fits none; ``None`` if nothing came."""
    connection, queue = run.connection(name), run.queues[name]
    if run.unknown:
        run.require_silence()
    while queue:
        arrival = queue[0]
        tried = []
        for branch, spec in expects:
            if spec.conn == name:
                found = fit(run, spec, arrival, connection)
                if not found.mismatches:
                    return branch
                tried.append((branch.name, spec, found))
        if not _is_noise_to_all(run, tried, arrival, connection):
            for branch, seconds in lasting:
                if run.came_after(seconds, arrival):
                    return branch
            return _no_branch(run, arrival, connection, tried)
        queue.popleft()
    return None


# Any order -----------------------------------------------------------------------------------------------------------
def any_order(run: Runtime, step: m.AnyOrderStep, path: str, perform: Perform) -> Script:
    """The step ``any_order``: its expectations, each once, as they are met. Raises StepFailed, Undecided, Senseless."""
    left: dict[int, m.ExpectStep] = {}
    for index, inner in enumerate(step.any_order):
        if not isinstance(inner, m.ExpectStep):
            raise Senseless("any_order holds a step that is no expectation")
        left[index] = inner
    start = run.event
    deadline = max(deadline_of(run, inner.expect) for inner in left.values())
    while left:
        names = list(dict.fromkeys(inner.expect.conn for inner in left.values()))
        name = next((name for name in names if run.queues[run.connection(name).name]), None)
        if name is None:
            if run.unknown:
                run.require_silence()
            if run.looked >= deadline:
                first = next(iter(left.values())).expect
                raise nothing_came(run, first, run.connection(first.conn))
            yield from run.wait(deadline)
            continue
        connection, arrival = run.connections[name], run.queues[name][0]
        tried: list[_Tried] = []
        taken = None
        for index, inner in left.items():
            if inner.expect.conn == name:
                found = fit(run, inner.expect, arrival, connection)
                if not found.mismatches:
                    taken = index
                    break
                tried.append((f"[{index}]", inner.expect, found))
        if taken is not None:
            run.event = start  # none of them is the event before another
            yield from perform(left.pop(taken), f"{path}.any_order[{taken}]")
        elif _is_noise_to_all(run, tried, arrival, connection):
            run.queues[name].popleft()
        else:
            raise _no_branch(run, arrival, connection, tried)


def _is_noise_to_all(run: Runtime, tried: list[_Tried], arrival: Arrival, connection: Connection) -> bool:
    """Whether *arrival*, which fits none of *tried*, is noise to each; then it is passed over."""
    kinds = {run.noise(connection, arrival, spec.noise) for _, spec, _ in tried} or {
        run.noise(connection, arrival, None)
    }
    kind = kinds.pop()
    if kind is None or kinds:
        return False
    run.pass_over(connection, arrival, kind)
    return True


def _no_branch(run: Runtime, arrival: Arrival, connection: Connection, tried: list[_Tried]) -> StepFailed:
    env = run.environment(connection)
    words = tuple(f"not {name}: {mismatch.words}" for name, _, found in tried for mismatch in found.mismatches)
    expected = "; or ".join(f"{name}: {describe(spec, env)}" for name, spec, _ in tried) or "silence"
    return run.fail(
        f"the stack sent {arrival.segment}, which fits none of the ways",
        expected,
        relative(arrival.segment, connection),
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
    """Whether what comes next fits *spec*; waits for its ``within``, else only settles."""
    connection = run.connection(spec.conn)
    queue = run.queues[connection.name]
    if spec.within is not None or spec.between is not None or spec.after is not None:
        deadline = deadline_of(run, spec)
    else:
        yield from run.settle()
        deadline = run.now
    while True:
        arrival = yield from run.head(queue, deadline)
        if arrival is None:
            return False
        if not fit(run, spec, arrival, connection).mismatches:
            return True
        noise = run.noise(connection, arrival, spec.noise)
        if noise is None:
            return False
        queue.popleft()
        run.pass_over(connection, arrival, noise)


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
    low, high = event.low - before.high, event.high - before.low
    previous, run.gap = run.gap, Interval(low, high)
    if previous is None and any(name == "previous" for name, _ in gap.is_.names):
        return  # the first gap has none before it
    bounds = []
    for run.previous_gap in (previous.low, previous.high) if previous is not None else (None,):
        bounds.append(run.seconds(gap.is_))
    least, most = min(bounds), max(bounds)
    low_slack, high_slack = (t * gap.tolerance / 100 + run.stack.tolerance for t in (least, most))
    came = f"{duration((low + high) / 2)} after the one before"
    wanted = f"{duration((least + most) / 2)} ± {gap.tolerance} %"
    if high < least - low_slack or low > most + high_slack:
        raise run.fail(f"it came {came}, want {wanted}", wanted, came)
    if low < most - high_slack or high > least + low_slack:
        raise Undecided(f"conform's loop was late; whether {came} is right cannot be told")
