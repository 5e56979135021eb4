"""How a described stack is run: its link, its settings, its agents. Made once in each worker."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from conform.case.model import Case
from conform.engine.trial import StackProfile, Trial
from conform.link import netns
from conform.link.medium import Medium, Port
from conform.run.loop import Loop
from conform.run.preflight import Machine
from conform.run.worker import Agent, Settings
from conform.stacks import linux
from conform.stacks.description import DescriptionError, StackDescription, load


class StackError(Exception):
    """There is no such stack, or its description cannot be used."""


class Described:
    """A stack's description, less what this machine cannot do."""

    def __init__(self, description: StackDescription, machine: Machine) -> None:
        self._whole = description
        self._lacking: dict[str, str] = dict(machine.environment.get("lacking", {}))
        if description.name == "linux" and not machine.environment.get("states", True):
            self._lacking["states"] = "connection states cannot be read on this machine"
        self.description = description.without(frozenset(self._lacking))
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


def describe(name: str, machine: Machine) -> Described:
    """The stack of that *name* (or description's path) on this *machine*. Raises :class:`StackError`."""
    try:
        return Described(load(name), machine)
    except DescriptionError as error:
        raise StackError(str(error)) from None


class LinuxAdapter:
    """This machine's kernel: settings are sysctls and route metrics of the trial's namespace, calls are real ones."""

    def __init__(self, loop: Loop, settings: Settings, description: StackDescription) -> None:
        self._loop = loop
        self._agents = settings.agent
        self._description = description
        self._nursery: linux.Nursery | None = None
        self.medium: Medium
        if settings.link == "tun":
            from conform.link.tun import TunMedium

            self.medium = TunMedium(loop)
        else:
            from conform.link.veth import VethMedium

            self.medium = VethMedium(loop)

    def attach(self, trial: Trial, space: netns.Namespace, deliver: Callable[[bytes, float], None]) -> Port:
        """Give *space* its settings and its link. Raises OSError, SettingError."""
        resolved = self._description.resolve(trial.case.settings, trial.case.sysctl)
        with space.enter():
            for name, value in resolved.sysctls.items():
                netns.write_sysctl(name, value)
        # A trial has the addresses of its own IP version alone: the other's cost as much to set up.
        addresses = {trial.ip: trial.stack.addresses[trial.ip]}
        return self.medium.attach(space, addresses, deliver, mtu=resolved.mtu, metrics=resolved.route)

    def agent(
        self,
        trial: Trial,
        space: netns.Namespace,
        reply: Callable[[int, dict[str, Any]], None],
        blocked: Callable[[int], None],
        broke: Callable[[str], None],
    ) -> Agent:
        """The agent that the trial needs, or that was asked for. Raises OSError."""
        addresses = trial.stack.addresses[trial.ip]
        if self._agents == "process" or (self._agents == "auto" and linux.needs_process(trial.case)):
            if self._nursery is None:
                self._nursery = linux.Nursery(self._loop)
            return linux.ProcessAgent(self._loop, self._nursery, space, trial.ip, addresses, reply, blocked, broke)
        return linux.InlineAgent(self._loop, space, trial.ip, addresses, reply, blocked, broke)

    def children(self) -> set[int]:
        """The process ids that someone here waits for."""
        pid = self._nursery.pid if self._nursery is not None else None
        return set() if pid is None else {pid}

    def close(self) -> None:
        """End the agents, let go of the link."""
        if self._nursery is not None:
            self._nursery.close()
        self.medium.close()


def factory(stack: Described) -> Callable[[Loop, Settings], LinuxAdapter]:
    """What makes a worker's adapter for *stack*."""
    return lambda loop, settings: LinuxAdapter(loop, settings, stack.description)
