"""A stack that conform starts, tried before a run: whether it comes up, what its agent can do, whether fences hold."""

from __future__ import annotations

import time
from dataclasses import replace
from typing import Any

from conform.case.model import Case
from conform.engine.trial import Trial
from conform.link import codec, netns
from conform.link.children import in_child
from conform.run.adapters import StackError
from conform.run.loop import Loop
from conform.run.rig.started import StartedAdapter
from conform.stacks import builds
from conform.stacks.description import StackDescription
from conform.tcp.segment import RST, SYN, IPFields, Segment

#: How many resets must each come before the echo behind them.
_ROUNDS = 20
_CLOSED_PORT = 9


class _NoWard:
    """Nobody holds the namespaces of a trying-out: its process is waited for."""

    def hold(self, netns: int) -> int:
        return 0

    def release(self, number: int) -> None:
        pass


class _Ears:
    """Hears one stand."""

    def __init__(self) -> None:
        self.up = False
        self.wrong = ""
        self.packets: list[bytes] = []

    def ready(self) -> None:
        self.up = True

    def arrived(self, data: bytes, since: float) -> None:
        self.packets.append(data)

    def replied(self, id: int, reply: dict[str, Any]) -> None:
        pass

    def blocked(self, id: int) -> None:
        pass

    def state_read(self, id: int, state: str | None, info: dict[str, Any]) -> None:
        pass

    def broke(self, reason: str) -> None:
        self.wrong = reason

    def died(self, reason: str) -> None:
        self.wrong = reason


def lacking(description: StackDescription, scratch: str) -> dict[str, str]:
    """The capabilities that the description claims and the agent does not have, each with the reason.

    *scratch* is a directory for what is temporary.

    Raises :class:`~conform.run.adapters.StackError`: the stack is not built, does not come up, or answers behind its
    fences.
    """
    name = description.name
    if not builds.built(description):
        raise StackError(f"{name} is not built yet: conform stacks build {name}", usage=False)
    within = description.start.within if description.start is not None else 5.0
    found = in_child(lambda: _try(description, scratch), 4 * within + 15, starts=True)
    if isinstance(found, str):
        found = {"wrong": found}
    if found["wrong"]:
        hint = f"\nIt is installed by: {description.install}" if description.install else ""
        raise StackError(f"{name} does not come up: {found['wrong']}{hint}", usage=False)
    if found["fence"]:
        raise StackError(f"{name}: {found['fence']}", usage=False)
    agent = found["capabilities"]
    if agent is None:
        return {}
    claimed = description.capabilities & AGENTS_OWN
    return dict.fromkeys(sorted(claimed - set(agent)), f"{name}'s agent cannot do that")


#: The capabilities that an agent has or has not; others are the stack's.
AGENTS_OWN = frozenset(
    {
        "calls", "overlap", "fork", "kill", "dup", "sigpipe", "states", "linger", "urgent", "tcp-info", "repair",
        "shutdown-read", "reuse-port", "fast-open",
    }
)  # fmt: skip


def _trial(description: StackDescription, version: int) -> Trial:
    case = Case.model_validate({"title": "It comes up", "covers": ["none"], "steps": [{"probe": "alive"}]})
    return Trial(
        id="tryout", case_id="tryout", file="", ip=version, row="", document={}, case=case, levels={},
        stack=description.profile, seed=0,
    )  # fmt: skip


def _try(description: StackDescription, scratch: str) -> dict[str, Any]:
    netns.unshare_home()
    codec.preload()
    loop = Loop()
    capabilities: list[str] | None = None
    for version in description.pairs:
        adapter = StartedAdapter(loop, _NoWard(), description, 1, scratch)  # type: ignore[arg-type]
        adapter.tries = 1  # what fails once before a run is told at once
        ears = _Ears()
        try:
            trial = _trial(description, version)
            rig = adapter.rig(trial, ears)
            rig.open()
            while not ears.up and not ears.wrong:
                loop.turn(0.05)
            if ears.wrong:
                return {"wrong": f"IPv{version}: {ears.wrong}", "fence": "", "capabilities": None}
            said = rig.capabilities
            capabilities = sorted(said) if said is not None else None
            wrong = _services(loop, rig, ears, trial, description)
            if not wrong and description.settle == "fence":
                wrong = _fences(loop, rig, ears, trial)
            if wrong:
                return {"wrong": "", "fence": wrong, "capabilities": capabilities}
        except OSError as error:
            return {"wrong": f"IPv{version}: {error}", "fence": "", "capabilities": None}
        finally:
            adapter.close()
    return {"wrong": "", "fence": "", "capabilities": capabilities}


def _services(loop: Loop, rig: Any, ears: _Ears, trial: Trial, description: StackDescription) -> str:
    """What is wrong with the services that the description names, "" for nothing."""
    stack, tester = trial.stack.addresses[trial.ip]
    for number, (name, port) in enumerate(description.services.items()):
        ears.packets.clear()
        syn = Segment(ip=IPFields(trial.ip, tester, stack), sport=39000 + number, dport=port, flags=SYN, seq=1, ack=0)
        rig.send(codec.build(syn))
        end = time.monotonic() + trial.stack.timers["timer.response.max"]
        answer = None
        while answer is None and time.monotonic() < end:
            loop.turn(0.05)
            if ears.wrong:
                return f"to a SYN to port {port} ({name}): {ears.wrong}"
            found = [codec.parse(data) for data in ears.packets]
            answer = next((each for each in found if each is not None and each.sport == port), None)
        if answer is None or not answer.flags & SYN:
            came = "nothing came" if answer is None else f"{answer} came"
            return f"services: nobody listens on port {port} for {name}: to a SYN {came}"
        reset = replace(syn, flags=RST, seq=2)
        rig.send(codec.build(reset))
    return ""


def _fences(loop: Loop, rig: Any, ears: _Ears, trial: Trial) -> str:
    """What is wrong with the stack's fences, "" for nothing."""
    stack, tester = trial.stack.addresses[trial.ip]
    fence = codec.Fence(trial.ip, stack, tester)
    syn = Segment(ip=IPFields(trial.ip, tester, stack), sport=40000, dport=_CLOSED_PORT, flags=SYN, seq=1, ack=0)
    for number in range(_ROUNDS):
        ears.packets.clear()
        rig.send(codec.build(replace(syn, sport=40000 + number)))
        rig.send(fence.build(number))
        end = time.monotonic() + 2.0
        behind = None
        while behind is None:
            loop.turn(0.05)
            if ears.wrong:
                return f"to a SYN to port {_CLOSED_PORT} and an echo request: {ears.wrong}"
            behind = next((n for n, data in enumerate(ears.packets) if fence.match(data) == number), None)
            if time.monotonic() > end:
                return "an echo request was not answered within 2 s; settle by time (settle: seconds)"
        if not any(codec.parse(data) is not None for data in ears.packets[:behind]):
            return (
                "the answer to a SYN did not come before the answer to an echo request behind it: fences do not hold;"
                " settle by time (settle: seconds)"
            )
    return ""
