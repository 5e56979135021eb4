"""The stack of a run: its description as it holds on this machine, and what makes the rigs of its trials."""

from __future__ import annotations

from typing import Any

from conform.case.model import Case
from conform.engine.trial import StackProfile
from conform.run import worker
from conform.run.preflight import Machine
from conform.stacks.description import DescriptionError, StackDescription, load


class StackError(Exception):
    """There is no such stack, or its description cannot be used, or the stack is not to be had here."""

    def __init__(self, message: str, usage: bool = True) -> None:
        """*usage*: the fault is in what was asked for, not in the machine or the stack."""
        super().__init__(message)
        self.usage = usage


class Described:
    """A stack's description, less what this machine or its agent cannot do: *lacking*, each with the reason."""

    def __init__(self, description: StackDescription, lacking: dict[str, str]) -> None:
        self._whole = description
        self._lacking = lacking
        self.description = description.without(frozenset(lacking))
        self.profile: StackProfile = self.description.profile

    def lacks(self, case: Case) -> str | None:
        """Why the stack cannot be given what *case* sets, or ``None``."""
        return self.description.lacks(case)

    def why(self, capability: str) -> str | None:
        """Why the machine takes that *capability* away from the stack; ``None`` where it does not."""
        return self._lacking.get(capability) if capability in self._whole.capabilities else None

    def to_json(self) -> dict[str, Any]:
        """As the run file's header has it: the description as it held on this machine."""
        data = self.description.model_dump(mode="json", by_alias=True)
        data["capabilities"] = sorted(data["capabilities"])
        data["lacking"] = self._lacking
        return data


def describe(name: str, machine: Machine, scratch: str | None) -> Described:
    """The stack of that *name* (or description's path) on this *machine*. Raises :class:`StackError`.

    With *scratch*, a directory for what is temporary, a stack that is started is started once, for what its agent
    cannot do and whether its fences hold. To be called in the namespaces that trials will be run in.
    """
    try:
        description = load(name)
    except DescriptionError as error:
        raise StackError(str(error)) from None
    lacking: dict[str, str] = {}
    if description.link == "kernel":
        lacking = dict(machine.environment.get("lacking", {}))
        if not machine.environment.get("states", True):
            lacking["states"] = "connection states cannot be read on this machine"
    elif scratch is not None:
        from conform.run.rig import tryout

        lacking = tryout.lacking(description, scratch)
    return Described(description, lacking)


def factory(stack: Described, jobs: int) -> worker.MakeAdapter:
    """What makes the adapter of one of *jobs* workers for *stack*."""
    description = stack.description
    if description.link == "kernel":
        from conform.run.rig.kernel import KernelAdapter

        return lambda loop, ward, settings, _: KernelAdapter(loop, ward, settings, description)
    from conform.run.rig.started import StartedAdapter

    limit = max(1, -(-description.parallel // jobs))
    return lambda loop, ward, settings, complain: StartedAdapter(
        loop, ward, description, limit, settings.scratch, complain
    )


def workers(stack: Described, jobs: int) -> int:
    """How many of *jobs* workers have something to do."""
    return jobs if stack.description.link == "kernel" else min(jobs, stack.description.parallel)
