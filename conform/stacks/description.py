"""Descriptions of stacks: what one can do, its times, and how a setting is made there (docs/stack-description.md)."""

from __future__ import annotations

import difflib
import ipaddress
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError, model_validator

from conform.case.expr import TIMERS, ExpressionError, parse
from conform.case.model import Case, Port
from conform.case.vocabulary import CAPABILITIES, SETTINGS
from conform.engine.trial import StackProfile

_TIMER_NAMES = tuple(name.removeprefix("timer.") for name in TIMERS)


def _one_of(what: str, words: Iterable[str]) -> AfterValidator:
    known = frozenset(words)

    def check(word: str) -> str:
        if word not in known:
            near = difflib.get_close_matches(word, known, 1)
            raise ValueError(f"{word!r} is no {what}" + (f"; did you mean {near[0]!r}?" if near else ""))
        return word

    return AfterValidator(check)


CapabilityName = Annotated[str, _one_of("capability", CAPABILITIES)]
SettingName = Annotated[str, _one_of("setting", SETTINGS)]
TimerName = Annotated[str, _one_of("timer", _TIMER_NAMES)]
_NAME = re.compile(r"^[a-z][a-z0-9-]*$")
Seconds = Annotated[float, Field(ge=0, allow_inf_nan=False)]
#: A setting's value as a case says it.
Value = bool | int | str


class DescriptionError(ValueError):
    """A stack's description that cannot be used; the message begins with its name or path."""


class SettingError(ValueError):
    """A setting that this stack cannot be given: a trial that wants it is not applicable."""


class _Model(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, populate_by_name=True)


class Addresses(_Model):
    """The two ends' addresses in one IP version."""

    stack: str
    tester: str


class Mechanism(_Model):
    """How a setting is made: one of a sysctl, a metric of the route to the tester, a property of the link.

    ``values`` maps words of the case format to what is written, null where there is nothing to do. ``takes`` says what
    else a case may give: a ``count``, a ``duration`` (written as a multiple of ``unit`` seconds), the name of a
    ``capability`` that the stack has. ``range`` bounds the number written; ``form`` is how it is written.
    """

    sysctl: Annotated[str | None, Field(pattern=r"^[a-z0-9_]+(\.[a-z0-9_]+)+$")] = None
    route: Literal["quickack", "initcwnd"] | None = None
    link: Literal["mtu"] | None = None
    values: dict[str, int | str | None] = {}
    takes: Literal["count", "duration", "capability"] | None = None
    unit: Annotated[float, Field(gt=0)] = 1.0
    range: tuple[int, int] | None = None
    form: Annotated[str, Field(pattern=r"^[^{}]*(\{0\}[^{}]*)+$")] = "{0}"

    @model_validator(mode="after")
    def _one_way(self) -> Mechanism:
        if sum(way is not None for way in (self.sysctl, self.route, self.link)) != 1:
            raise ValueError("a setting is made by exactly one of sysctl, route and link")
        if not self.values and self.takes is None:
            raise ValueError("a setting has values, or takes something")
        return self


@dataclass(frozen=True, slots=True)
class Resolved:
    """Settings as this stack is given them: sysctls and what is written there, route metrics, the link's MTU."""

    sysctls: dict[str, str] = field(default_factory=dict)
    route: dict[str, int] = field(default_factory=dict)
    mtu: int | None = None


class StackDescription(_Model):
    """All that is known of a stack. ``timers`` are in seconds, named as in expressions without their ``timer.``.

    ``tolerance`` is by how many seconds any of its times may be off; ``settle`` is ``fence``, or the seconds after
    which an immediate answer would have come; ``defaults`` are the settings of every trial that says no other.
    """

    format: Literal[1]
    name: Annotated[str, Field(pattern=_NAME.pattern, max_length=40)]
    title: Annotated[str, Field(min_length=1, max_length=200)]
    capabilities: frozenset[CapabilityName]
    timers: dict[TimerName, Seconds]
    tolerance: Seconds
    settle: Literal["fence"] | Annotated[float, Field(gt=0, allow_inf_nan=False)]
    addresses: Annotated[dict[Literal[4, 6], Addresses], Field(min_length=1)]
    port: Port = 80
    settings: dict[SettingName, Mechanism] = {}
    defaults: dict[SettingName, Value] = {}

    @model_validator(mode="after")
    def _whole(self) -> StackDescription:
        missing = [name for name in _TIMER_NAMES if name not in self.timers]
        if missing:
            raise ValueError(f"timers lacks {', '.join(missing)}")
        for version, pair in self.addresses.items():
            for address in (pair.stack, pair.tester):
                if ipaddress.ip_address(address).version != version:
                    raise ValueError(f"{address} is no IPv{version} address")
        for version in self.addresses:
            if f"ipv{version}" not in self.capabilities:
                raise ValueError(f"addresses has IPv{version}, and capabilities lacks ipv{version}")
        self.resolve({}, {})
        return self

    @property
    def profile(self) -> StackProfile:
        """What the engine must know of it."""
        return StackProfile(
            name=self.name,
            capabilities=frozenset(self.capabilities),
            timers={f"timer.{name}": seconds for name, seconds in self.timers.items()},
            tolerance=self.tolerance,
            settle=self.settle,
            addresses={version: (pair.stack, pair.tester) for version, pair in self.addresses.items()},
            port=self.port,
        )

    def without(self, capabilities: Mapping[str, Any] | frozenset[str]) -> StackDescription:
        """The same stack on a machine that does not allow those *capabilities*.

        A default that can no longer be set is left to the stack.
        """
        left = self.capabilities - frozenset(capabilities)
        defaults = {
            name: value
            for name, value in self.defaults.items()
            if self.settings[name].takes != "capability" or value in left or value in self.settings[name].values
        }
        addresses = {v: pair for v, pair in self.addresses.items() if f"ipv{v}" in left}
        return self.model_copy(update={"capabilities": left, "defaults": defaults, "addresses": addresses})

    def resolve(self, settings: Mapping[str, Value], sysctl: Mapping[str, int | str]) -> Resolved:
        """What a trial with a case's *settings* and raw *sysctl* is given, the defaults included.

        A raw sysctl wins over a setting. Raises SettingError for what this stack has no way to do.
        """
        sysctls: dict[str, str] = {}
        route: dict[str, int] = {}
        mtu = None
        for name, value in {**self.defaults, **settings}.items():
            mechanism = self.settings.get(name)
            if mechanism is None:
                raise SettingError(f"{self.name} has no way to set {name}")
            written = self._written(name, mechanism, value)
            if written is None:
                continue
            if mechanism.sysctl is not None:
                sysctls[mechanism.sysctl] = mechanism.form.format(written)
            elif mechanism.route is not None:
                route[mechanism.route] = int(written)
            else:
                mtu = int(written)
        if sysctl and "linux" not in self.capabilities:
            raise SettingError(f"{self.name} has no sysctls")
        sysctls.update((name, str(value)) for name, value in sysctl.items())
        return Resolved(sysctls, route, mtu)

    def lacks(self, case: Case) -> str | None:
        """Why the stack cannot be given what *case* sets, or None."""
        try:
            self.resolve(case.settings, case.sysctl)
        except SettingError as error:
            return str(error)
        return None

    def _written(self, name: str, mechanism: Mechanism, value: Value) -> int | str | None:
        word = ("on" if value else "off") if isinstance(value, bool) else value
        if word in mechanism.values:
            return mechanism.values[str(word)]
        number: int | None = None
        if mechanism.takes == "count" and isinstance(word, int):
            number = word
        elif mechanism.takes == "count" and isinstance(word, str) and word.isdecimal():
            number = int(word)
        elif mechanism.takes == "duration":
            number = round(self._seconds(name, word) / mechanism.unit)
        elif mechanism.takes == "capability" and word in self.capabilities:
            return str(word)
        if number is None:
            raise SettingError(f"{self.name} has no way to set {name} to {word}")
        low, high = mechanism.range or (0, 0x7FFFFFFF)
        if not low <= number <= high:
            raise SettingError(f"{self.name} has no way to set {name} to {word}: only {low} to {high}")
        return number

    def _seconds(self, name: str, value: int | str) -> float:
        try:
            expression = parse(str(value))
            if expression.kind != "duration":
                raise SettingError(f"{name} wants a duration with its unit, and {value} is none")
            return expression.evaluate(lambda timer: self.timers[timer.removeprefix("timer.")])
        except (ExpressionError, KeyError) as error:
            raise SettingError(f"{name} cannot be {value}: {error}") from None


def load(name_or_path: str | Path) -> StackDescription:
    """The description that ships under that name (``linux``), or the one in that file. Raises DescriptionError."""
    path = Path(name_or_path)
    if _NAME.fullmatch(str(name_or_path)) and (shipped := Path(__file__).with_name(f"{name_or_path}.yaml")).is_file():
        path = shipped
    try:
        text = path.read_text(encoding="utf-8")
    except OSError as error:
        known = ", ".join(sorted(each.stem for each in Path(__file__).parent.glob("*.yaml")))
        raise DescriptionError(f"{name_or_path}: {error.strerror}; there ship: {known}") from None
    except UnicodeDecodeError as error:
        raise DescriptionError(f"{path}: {error}") from None
    try:
        return StackDescription.model_validate(_words(yaml.safe_load(text)))
    except yaml.YAMLError as error:
        raise DescriptionError(f"{path}: {error}") from None
    except ValidationError as error:
        lines = [f"{'.'.join(map(str, each['loc'])) or 'the description'}: {each['msg']}" for each in error.errors()]
        raise DescriptionError("\n".join(f"{path}: {line}" for line in lines)) from None


def _words(data: Any) -> Any:
    """*data* with the keys that YAML 1.1 takes for booleans as the words that they are: ``on: 1`` needs no quotes."""
    if isinstance(data, dict):
        return {{True: "on", False: "off"}.get(k, k) if isinstance(k, bool) else k: _words(v) for k, v in data.items()}
    return [_words(each) for each in data] if isinstance(data, list) else data
