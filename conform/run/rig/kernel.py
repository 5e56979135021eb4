"""This machine's own stack: a network namespace a trial, a TUN or veth into it, calls made in it, sock_diag."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any

from conform.engine.trial import Trial
from conform.link import netns
from conform.link.medium import Medium, Port
from conform.run import kernel
from conform.run.rig import Ears
from conform.stacks import linux
from conform.stacks.description import SettingError, StackDescription
from conform.stacks.sockdiag import SockDiag

if TYPE_CHECKING:
    from conform.run.loop import Loop
    from conform.run.warden import Ward
    from conform.run.worker import Settings


def make_medium(name: str, loop: Loop) -> Medium:
    """The medium of that name, ``tun`` or ``veth``. Raises OSError."""
    if name == "tun":
        from conform.link.tun import TunMedium

        return TunMedium(loop)
    from conform.link.veth import VethMedium

    return VethMedium(loop)


class KernelRig:
    """One trial on this machine's kernel: settings are sysctls and route metrics of the trial's namespace."""

    def __init__(self, adapter: KernelAdapter, trial: Trial, ears: Ears) -> None:
        self.trial = trial
        self._adapter = adapter
        self._ears = ears
        self._space: netns.Namespace | None = None
        self._held: int | None = None
        self._port: Port | None = None
        self._agent: linux.InlineAgent | linux.ProcessAgent | None = None
        self._diag: SockDiag | None = None

    def open(self) -> None:
        """Make the namespace and what is in it. Raises OSError, SettingError."""
        adapter, trial = self._adapter, self.trial
        resolved = adapter.description.resolve(trial.case.settings, trial.case.sysctl)
        self._space = space = netns.Namespace.create()
        self._held = adapter.ward.hold(space.fd)
        with space.enter():
            for name, value in resolved.sysctls.items():
                try:
                    netns.write_sysctl(name, value)
                except FileNotFoundError:
                    raise SettingError(f"this kernel has no sysctl {name}") from None
        # A trial has the addresses of its own IP version alone: the other's cost as much to set up.
        addresses = {trial.ip: trial.stack.addresses[trial.ip]}
        self._port = adapter.medium.attach(
            space, addresses, self._ears.arrived, mtu=resolved.mtu, metrics=resolved.route
        )
        self._diag = SockDiag(space, trial.stack.addresses)
        ears = self._ears
        talk = (trial.ip, trial.stack.addresses[trial.ip], ears.replied, ears.blocked, ears.broke)
        if adapter.wants_process(trial):
            self._agent = linux.ProcessAgent(adapter.loop, adapter.nursery(), space, *talk)
        else:
            self._agent = linux.InlineAgent(adapter.loop, space, *talk)
        ears.ready()

    def uses(self, ports: Iterable[int]) -> None:
        """Nothing to do: no trial was here before."""

    def send(self, data: bytes) -> None:
        """Inject *data*. Raises OSError."""
        assert self._port is not None
        self._port.send(data)

    def request(self, id: int, request: dict[str, Any]) -> None:
        """Have a call made."""
        assert self._agent is not None
        self._agent.request(id, request)

    def read_state(self, id: int, stack_port: int, tester_port: int) -> None:
        """Read a state by sock_diag, at once."""
        assert self._diag is not None
        self._ears.state_read(id, *self._diag.state(self.trial.ip, stack_port, tester_port))

    def lost(self) -> int:
        """The medium's: its socket is that of all trials."""
        return self._adapter.medium.lost()

    def cleanups(self) -> list[Callable[[], object]]:
        """End the agent, destroy what sockets are left, let go of the namespace."""
        steps: list[Callable[[], object]] = []
        if self._agent is not None:
            steps.append(self._agent.close)
        if self._diag is not None:
            steps += [self._destroy, self._diag.close]
        if self._port is not None:
            steps.append(self._port.close)
        if self._space is not None:
            steps.append(self._space.close)
        if self._held is not None:
            held = self._held
            steps.append(lambda: self._adapter.ward.release(held))
        return steps

    def _destroy(self) -> None:
        """Destroy what an agent's process still holds, or what a reset did not reach: it would pin the namespace."""
        assert self._space is not None
        assert self._diag is not None
        with self._space.enter():
            left = kernel.tcp_sockets()
        if left:  # to list them takes a walk over the sockets of all namespaces, ten times as long as to count them
            self._diag.destroy_all()


class KernelAdapter:
    """This machine's kernel, in a worker."""

    def __init__(self, loop: Loop, ward: Ward, settings: Settings, description: StackDescription) -> None:
        self.loop = loop
        self.ward = ward
        self.description = description
        self.medium = make_medium(settings.link, loop)
        self._agents = settings.agent
        self._nursery: linux.Nursery | None = None

    def room(self) -> bool:
        """Always: namespaces are many."""
        return True

    def rig(self, trial: Trial, ears: Ears) -> KernelRig:
        """A namespace of its own for *trial*."""
        return KernelRig(self, trial, ears)

    def wants_process(self, trial: Trial) -> bool:
        """Whether the trial's calls are made by processes: because it needs that, or it was asked for."""
        return self._agents == "process" or (self._agents == "auto" and linux.needs_process(trial.case))

    def nursery(self) -> linux.Nursery:
        """What forks agents; started when the first trial wants one. Raises OSError."""
        if self._nursery is None:
            self._nursery = linux.Nursery(self.loop)
        return self._nursery

    def children(self) -> set[int]:
        """The nursery's process id."""
        pid = self._nursery.pid if self._nursery is not None else None
        return set() if pid is None else {pid}

    def close(self) -> None:
        """End the agents, let go of the link."""
        if self._nursery is not None:
            self._nursery.close()
        self.medium.close()
