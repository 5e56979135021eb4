"""Interprets one trial: the case's steps against what the stack does.

A :class:`Session` does no I/O and reads no clock. Its interpreter is one generator; a step that must wait yields, and
is resumed at each event. The same events at the same times give the same actions, transcript and verdict.

What each step does is in :mod:`~conform.engine.packets`, :mod:`~conform.engine.calls`, :mod:`~conform.engine.state`,
:mod:`~conform.engine.structure` and :mod:`~conform.engine.liveness`; what they share, in
:mod:`~conform.engine.runtime`.
"""

from __future__ import annotations

import contextlib

from conform.case import model as m
from conform.case.vocabulary import DEFAULT_NOISE
from conform.engine import calls, liveness, packets, state, structure
from conform.engine import events as ev
from conform.engine.endings import Broken, NotTaken, Senseless, StepFailed, Undecided
from conform.engine.runtime import Runtime, Script
from conform.engine.timing import Interval
from conform.engine.transcript import DIGITS, rounded
from conform.engine.trial import Trial
from conform.engine.verdict import GATING, LEVELS, Level, Verdict
from conform.tcp import states as st
from conform.tcp.segment import ACK, RST, Segment


class Session:
    """One trial in progress. See ``conform.engine.events`` for the contract with its driver."""

    def __init__(self, trial: Trial) -> None:
        self.trial = trial
        self.verdict: Verdict | None = None
        self._run = Runtime(trial)
        self.transcript = self._run.transcript
        self.connections = self._run.connections
        self._script = self._main()

    # The driver's side -------------------------------------------------------------------------------------------
    @property
    def finished(self) -> bool:
        """Whether there is a verdict."""
        return self.verdict is not None

    @property
    def now(self) -> float:
        """The time of the last event, in seconds since the trial's start."""
        return self._run.now

    def start(self, now: float = 0.0) -> None:
        """Begin at *now* (0 by convention)."""
        run = self._run
        run.now = round(now, DIGITS)
        run.event = Interval(run.now, run.now)
        self._resume()

    def receive(self, event: ev.Event, now: float) -> None:
        """Something happened at *now* seconds since the start. After the verdict, nothing counts any more."""
        if self.verdict is not None:
            return
        run = self._run
        event = rounded(event)
        run.now = max(run.now, round(now, DIGITS))
        entry = run.transcript.event(run.now, event)
        match event:
            case ev.Arrived(packet=Segment() as segment):
                run.arrive(segment, Interval(min(event.since, run.now), run.now), entry)
            case ev.Injected():
                run.injected[event.id] = event
            case ev.Returned():
                run.replies[event.id] = event
                run.reply_entries[event.id] = entry
            case ev.Blocked():
                run.blocked.add(event.id)
            case ev.Settled():
                run.settled.add(event.id)
                run.looked = run.now
            case ev.Ticked():
                run.looked = run.now
            case ev.StateRead():
                run.states[event.id] = event
            case ev.Broke():
                run.broke = event.reason
            case ev.Lost():
                run.lost += event.packets
            case ev.Died():
                run.died, run.died_at = event.reason, entry
        self._resume()

    def actions(self) -> list[ev.Action]:
        """What is to be done, in order; each is given once."""
        taken, self._run.actions = self._run.actions, []
        return taken

    def deadline(self) -> float | None:
        """When the session wants to hear ``Ticked`` if nothing else happens; ``None`` for never."""
        return None if self.verdict is not None else self._run.deadline

    def closing_segments(self) -> list[Segment]:
        """An exact reset for each connection that may still be open, to be sent when all is over."""
        out = []
        for connection in self.connections.values():
            if connection.stack_port is None or not connection.used or connection.states <= {st.CLOSED, st.LISTEN}:
                continue
            flags, ack = RST | ACK, connection.snd_nxt
            for seq in sorted(connection.rcv_nxts):
                out.append(self._run.craft.segment(connection, flags=flags, seq=seq, ack=ack))
        return out

    def _resume(self) -> None:
        self._run.deadline = None
        with contextlib.suppress(StopIteration):
            next(self._script)

    # The script --------------------------------------------------------------------------------------------------
    def _main(self) -> Script:
        run, case = self._run, self.trial.case
        try:
            run.in_recipe = True
            yield from structure.in_order(case.recipe, "recipe", self._step)
            yield from run.quiet()
            run.in_recipe = False
            yield from structure.in_order(case.steps, "steps", self._step)
            yield from self._end()
            self.verdict = self._passed()
        except StepFailed as failed:
            run.transcript.note(run.now, "failed", step=failed.failure.step, of=failed.failure.entry)
            self.verdict = self._failed(failed)
        except Undecided as undecided:
            self.verdict = Verdict("inconclusive", reason=str(undecided), late=True)
        except Broken as broken:
            self.verdict = Verdict("error", reason=str(broken))
        except Senseless as senseless:
            self.verdict = Verdict("error", reason=f"{run.path}: {senseless}")
        except NotTaken as never:
            self.verdict = Verdict("inconclusive", reason=f"{run.path}: {never}", findings=tuple(run.findings))
        except ZeroDivisionError:
            self.verdict = Verdict("error", reason=f"{run.path}: an expression divides by zero")
        except ArithmeticError as error:
            self.verdict = Verdict("error", reason=f"{run.path}: an expression cannot be computed: {error}")
        except (KeyError, IndexError):
            raise  # a fault of conform's own, and never the stack's
        except LookupError as error:
            # What the case asks for has no value at this point of it, whatever the stack does.
            self.verdict = Verdict("error", reason=f"{run.path}: {error}")

    def _step(self, step: m.Step, path: str) -> Script:
        run = self._run
        with run.at(step, path):
            match step:
                case m.SendStep():
                    yield from packets.send(run, step.send)
                case m.ExpectStep():
                    yield from packets.expect(run, step.expect)
                case m.CallStep():
                    yield from calls.call(run, step.call)
                case m.StartStep():
                    yield from calls.start(run, step.start)
                case m.BlockedStep():
                    yield from calls.blocked(run, step.blocked)
                case m.FinishStep():
                    yield from calls.finish(run, step.finish)
                case m.SilenceStep():
                    yield from packets.silence(run, step.silence)
                case m.StateStep():
                    yield from state.expect_state(run, step.state)
                case m.CheckStep():
                    state.check(run, step.check)
                case m.ProbeStep():
                    yield from run.quiet()
                    yield from liveness.probe(run, asked=True)
                    run.asserted()
                case m.OneOfStep():
                    yield from structure.one_of(run, step, path, self._step)
                case m.AnyOrderStep():
                    yield from structure.any_order(run, step, path)
                case m.OptionalStep():
                    yield from structure.optional(run, step.optional, path, self._step)
                case m.RepeatStep():
                    yield from structure.repeat(run, step.repeat, path, self._step)

    # The end -----------------------------------------------------------------------------------------------------
    def _end(self) -> Script:
        run = self._run
        run.path = "end"
        run.transcript.note(run.now, "step", step="end")
        yield from run.quiet()
        for name, pending in list(run.calls.items()):
            until = run.now + run.stack.timers["timer.response.max"]
            while pending.action not in run.replies and not pending.in_recipe:
                if run.looked >= until:
                    raise run.fail(f"the call {name} has not ended", f"{name} ended", "it still sleeps")
                yield from run.wait(until)
            if not pending.in_recipe:
                calls.check(run, pending, pending.call)
        if self.trial.case.liveness == "connection":
            yield from liveness.probe(run, asked=False)
        else:
            yield from liveness.probe_port(run)
        yield from run.settle()
        # A window update may have been what was taken for the probe's answer, which then repeats it.
        noise = self.trial.case.noise
        run.require_silence([*(DEFAULT_NOISE if noise is None else noise), "duplicate-ack"])
        run.check_faults()

    def _passed(self) -> Verdict:
        run = self._run
        if run.violations:
            return self._failed(run.violations[0])
        found, unverified = tuple(run.findings), tuple(run.unverified)
        if not run.assertions and not unverified:
            return Verdict("error", reason="no assertion of the case ran, so it shows nothing")
        reason = "what could not be read out was not checked" if unverified else ""
        return Verdict("pass" if run.assertions else "inconclusive", None, (), None, reason, found, unverified)

    def _failed(self, failed: StepFailed) -> Verdict:
        run = self._run
        found, unverified = tuple(run.findings), tuple(run.unverified)
        if run.in_recipe:
            reason = f"the precondition was not reached: {failed.failure.summary}"
            return Verdict("inconclusive", failure=failed.failure, reason=reason, findings=found, unverified=unverified)
        requirements = failed.covers or run.covers
        levels = [GATING[self.trial.levels[r]] for r in requirements if r in self.trial.levels]
        level: Level = min(levels, key=LEVELS.index, default="must")
        return Verdict("fail", level, requirements, failed.failure, "", found, unverified)
