"""From cases to trials: one for each case, IP version and row of its matrix."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Protocol

from conform.case import recipes
from conform.case.expr import ExpressionError, parse
from conform.case.model import Case
from conform.case.vocabulary import CAPABILITIES
from conform.engine.trial import StackProfile, Trial
from conform.link.medium import IPV6_LEAST_MTU
from conform.run.select import Selection

#: What a call needs beyond "calls", by its name.
_CALL_NEEDS = {"connect": "active-open", "fork": "fork", "dup": "dup", "kill": "kill", "exit": "kill"}


class PlanError(Exception):
    """The cases cannot be planned together: two trials would have one id."""


class Row(Protocol):
    """One row of a case's matrix, as ``case.load`` gives it; a case without one has a single row without id."""

    @property
    def id(self) -> str: ...
    @property
    def document(self) -> dict[str, Any]: ...
    @property
    def case(self) -> Case: ...


class LoadedCase(Protocol):
    """A case that was read, as ``case.load`` gives it."""

    @property
    def case_id(self) -> str: ...
    @property
    def path(self) -> Any: ...
    @property
    def rows(self) -> Sequence[Row]: ...


class Stack(Protocol):
    """What planning needs of a stack's description."""

    @property
    def profile(self) -> StackProfile: ...

    def lacks(self, case: Case) -> str | None:
        """Why the stack cannot do what the case's settings ask for, or ``None``."""
        ...

    def why(self, capability: str) -> str | None:
        """Why the machine takes that capability away from the stack; ``None`` where it does not."""
        ...


@dataclass(slots=True)
class Plan:
    """All trials of a run, in order. With ``repeat`` each comes several times, its number behind a ``#``."""

    trials: list[Trial]
    repeat: int = 1
    known: int = 0  # how many trials there were to select from
    everything: list[str] = field(default_factory=list)  # the ids of those

    def __len__(self) -> int:
        return len(self.trials) * self.repeat

    def trial(self, index: int) -> Trial:
        """The trial of that number. Repetitions share all but the id, and are made when asked for."""
        trial = self.trials[index % len(self.trials)]
        return replace(trial, id=self.id(index)) if self.repeat > 1 else trial

    def id(self, index: int) -> str:
        """The id of the trial of that number."""
        number, base = divmod(index, len(self.trials))
        name = self.trials[base].id
        return f"{name}#{number + 1}" if self.repeat > 1 else name

    def ids(self) -> Iterator[str]:
        """The ids of all trials, in order."""
        return (self.id(index) for index in range(len(self)))

    def dispatch(self) -> list[int]:
        """The trials' numbers in the order in which they are best begun: those that only wait for long come first.

        The run is as long as its last trial, and trials that wait cost nothing beside the others.
        """
        waits = [_waits(trial) for trial in self.trials]
        many = len(self.trials)
        return sorted(range(len(self)), key=lambda index: -waits[index % many])


def trial_id(case: str, row: str, version: int) -> str:
    """The id of a trial: readable, stable, unique in a run."""
    return f"{case}.{row}.v{version}" if row else f"{case}.v{version}"


def requirements(document: Mapping[str, Any]) -> list[str]:
    """The ids of all requirements that a resolved case names, in order, each once."""
    found: dict[str, None] = {}

    def walk(value: Any) -> None:
        if isinstance(value, Mapping):
            for key, inner in value.items():
                if key == "covers":
                    found.update(dict.fromkeys([inner] if isinstance(inner, str) else inner))
                elif key == "violates" and isinstance(inner, str):
                    found[inner] = None
                else:
                    walk(inner)
        elif isinstance(value, (list, tuple)):
            for inner in value:
                walk(inner)

    walk(document)
    return list(found)


def build(
    cases: Iterable[LoadedCase],
    stack: Stack,
    levels: Mapping[str, str],
    *,
    versions: Sequence[int] = (4, 6),
    selection: Selection | None = None,
    seed: int = 0,
    repeat: int = 1,
) -> Plan:
    """The trials of *cases* on *stack* that are meant by *selection*.

    *levels* maps requirement ids to their level in the catalogue. Raises :class:`PlanError`, and SelectionError for a
    selection that cannot be understood.
    """
    selection = selection or Selection()
    meant = selection.trials()
    trials: list[Trial] = []
    everything: list[str] = []
    seen: dict[str, str] = {}
    for loaded in cases:
        for row in loaded.rows:
            named = requirements(row.document)
            wanted = selection.case(row.case, named, dict(levels))
            reason = None
            document, case, profile = row.document, row.case, stack.profile
            if wanted and profile.services:
                reached = by_service(row, profile)
                if isinstance(reached, str):
                    reason = reached
                else:
                    document, case, profile = reached
            if wanted and reason is None:
                reason = not_applicable(case, stack)
            own = {requirement: levels[requirement] for requirement in named if requirement in levels}
            for version in versions:
                if row.case.ip not in (version, "both"):
                    continue
                name = trial_id(loaded.case_id, row.id, version)
                file = str(loaded.path)
                if name.lower() in seen:
                    raise PlanError(f"{file} and {seen[name.lower()]} both give the trial {name}")
                seen[name.lower()] = file
                everything.append(name)
                if not wanted or not meant(name):
                    continue
                trials.append(
                    Trial(
                        id=name,
                        case_id=loaded.case_id,
                        file=file,
                        ip=version,
                        row=row.id,
                        document=document,
                        case=case,
                        levels=own,
                        stack=profile,
                        seed=seed,
                        not_applicable=reason or _version_lacks(version, row.case, stack),
                    )
                )
    return Plan(trials, repeat, len(everything), everything)


def by_service(row: Row, profile: StackProfile) -> tuple[dict[str, Any], Case, StackProfile] | str:
    """*row* for a stack without an agent: its document and case with the way by a service, the profile with the port
    of that service. A text says why there is no such way.
    """
    try:
        service, steps = recipes.by_service(row.case.given, row.document, profile.services)
    except recipes.NoRecipeError as error:
        return f"calls ({CAPABILITIES['calls']}): {profile.name} has no agent, and {error}"
    document = {**row.document, "recipe": steps}
    case = Case.model_validate(document, by_alias=True, by_name=False)
    return document, case, replace(profile, port=profile.services.get(service, profile.port))


def not_applicable(case: Case, stack: Stack) -> str | None:
    """Why *case* has nothing to say of *stack*, whatever the IP version; ``None`` when it has."""
    lacking = [need for need in needs(case) if need not in stack.profile.capabilities]
    if "calls" in lacking:
        lacking = ["calls"]  # without an agent all that is an agent's is lacking
    if lacking:
        reasons = [stack.why(need) or f"{stack.profile.name} cannot do that" for need in lacking]
        return "; ".join(f"{need} ({CAPABILITIES[need]}): {why}" for need, why in zip(lacking, reasons, strict=True))
    return stack.lacks(case)


def needs(case: Case) -> list[str]:
    """The capabilities that *case* needs: those that it says, and those that follow from its calls and its recipe.

    What a recipe goes by is needed, what a case's own steps do is what the case is about: without a half-close the
    states behind one cannot be reached, and the case that calls shutdown shows it.
    """
    found = dict.fromkeys(case.requires)
    if case.given.state == "SYN-RECEIVED" and case.given.role == "active":
        found["simultaneous-open"] = None
    if case.sysctl:
        found["linux"] = None
    for step in _steps(case.recipe):
        call = getattr(step, "call", None)
        if call is not None and call.do == "shutdown":
            found["half-close"] = None
    for step in _steps([*case.recipe, *case.steps]):
        call = getattr(step, "call", None) or getattr(step, "start", None)
        if call is None:
            continue
        found["calls"] = None
        if getattr(step, "start", None) is not None:
            found["overlap"] = None
        need = _CALL_NEEDS.get(call.do)
        if need:
            found[need] = None
    return list(found)


def _steps(steps: Iterable[Any]) -> Iterator[Any]:
    for step in steps:
        yield step
        for choice in getattr(step, "one_of", None) or ():
            yield from _steps(choice.steps)
        for name in ("any_order", "optional"):
            yield from _steps(getattr(step, name, None) or ())
        repeat = getattr(step, "repeat", None)
        if repeat is not None:
            yield from _steps(repeat.steps)


def _version_lacks(version: int, case: Case, stack: Stack) -> str | None:
    if version not in stack.profile.addresses or f"ipv{version}" not in stack.profile.capabilities:
        return stack.why(f"ipv{version}") or f"{stack.profile.name} has no IPv{version}"
    mtu = case.settings.get("mtu")
    if version == 6 and isinstance(mtu, int) and mtu < IPV6_LEAST_MTU:
        return f"IPv6 needs an MTU of {IPV6_LEAST_MTU} octets (RFC 8200 section 5), and the case sets {mtu}"
    return None


def _waits(trial: Trial) -> float:
    """About how many seconds the trial only waits, by what its document says."""

    def seconds(value: Any) -> float:
        try:
            return float(parse(str(value)).evaluate(trial.stack.timers.__getitem__))
        except (ExpressionError, LookupError, TypeError, ValueError):
            return 0.0

    def walk(value: Any) -> float:
        if isinstance(value, Mapping):
            total = 0.0
            for key, inner in value.items():
                if key in ("for", "after") or (key == "silence" and isinstance(inner, str)):
                    total += seconds(inner)
                elif key == "between" and isinstance(inner, (list, tuple)) and inner:
                    total += seconds(inner[0])
                else:
                    total += walk(inner)
            return total
        if isinstance(value, (list, tuple)):
            return sum(map(walk, value))
        return 0.0

    return 0.0 if trial.not_applicable else round(walk([trial.document.get("recipe", []), trial.document["steps"]]), 1)
