"""Descriptions of stacks: what one can do, its times, and how a setting is made there (docs/stack-description.md)."""

from __future__ import annotations

import difflib
import ipaddress
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    GetCoreSchemaHandler,
    GetJsonSchemaHandler,
    PrivateAttr,
    ValidationError,
    model_validator,
)
from pydantic_core import core_schema

from conform.case import source as located
from conform.case.expr import TIMERS, ExpressionError, parse
from conform.case.model import Case, Port
from conform.case.vocabulary import CAPABILITIES, SERVICES, SETTINGS
from conform.engine.trial import StackProfile

_TIMER_NAMES = tuple(name.removeprefix("timer.") for name in TIMERS)


@dataclass(frozen=True, slots=True)
class _OneOf:
    """A word that is one of a vocabulary: checked with a hint, and enumerated in the JSON Schema."""

    what: str
    words: Iterable[str]

    def __get_pydantic_core_schema__(self, source: Any, handler: GetCoreSchemaHandler) -> Any:
        return core_schema.no_info_after_validator_function(_check(self.what, self.words), handler(source))

    def __get_pydantic_json_schema__(self, schema: Any, handler: GetJsonSchemaHandler) -> dict[str, Any]:
        return {"type": "string", "enum": sorted(self.words)}


def _check(what: str, words: Iterable[str]) -> Callable[[str], str]:
    known = frozenset(words)

    def check(word: str) -> str:
        if word not in known:
            near = difflib.get_close_matches(word, known, 1)
            raise ValueError(f"{word!r} is no {what}" + (f"; did you mean {near[0]!r}?" if near else ""))
        return word

    return check


CapabilityName = Annotated[str, _OneOf("capability", CAPABILITIES)]
SettingName = Annotated[str, _OneOf("setting", SETTINGS)]
TimerName = Annotated[str, _OneOf("timer", _TIMER_NAMES)]
ServiceName = Annotated[str, _OneOf("service", SERVICES)]
_NAME = re.compile(r"^[a-z][a-z0-9-]*$")
Seconds = Annotated[float, Field(ge=0, allow_inf_nan=False)]
#: A setting's value as a case says it.
Value = bool | int | str


#: After so many times ``response.max`` the engine no longer waits for a stack to settle.
PATIENCE = 5


class DescriptionError(ValueError):
    """A stack's description that cannot be used; the message begins with its name or path."""


class StackLostError(OSError):
    """A stack that could not be started, or was lost; the text says how."""


class SettingError(ValueError):
    """A setting that this stack cannot be given: a trial that wants it is not applicable."""


class _Model(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, populate_by_name=True, use_attribute_docstrings=True)


class Addresses(_Model):
    """The two ends' addresses in one IP version."""

    stack: str
    tester: str


class Mechanism(_Model):
    """How a setting is made: one of a sysctl, a metric of the route to the tester, a property of the link, or a
    request ``set`` to the agent, by a name of the stack's own.

    ``values`` maps words of the case format to what is written, null where there is nothing to do. ``takes`` says what
    else a case may give: a ``count``, a ``duration`` (written as a multiple of ``unit`` seconds), the name of a
    ``capability`` that the stack has. ``range`` bounds the number written; ``form`` is how it is written.
    """

    sysctl: Annotated[str | None, Field(pattern=r"^[a-z0-9_]+(\.[a-z0-9_]+)+$")] = None
    route: Literal["quickack", "initcwnd"] | None = None
    link: Literal["mtu"] | None = None
    agent: Annotated[str | None, Field(min_length=1, max_length=200)] = None
    values: dict[str, int | str | None] = {}
    takes: Literal["count", "duration", "capability"] | None = None
    unit: Annotated[float, Field(gt=0)] = 1.0
    range: tuple[int, int] | None = None
    form: Annotated[str, Field(pattern=r"^[^{}]*(\{0\}[^{}]*)+$")] = "{0}"

    @model_validator(mode="after")
    def _one_way(self) -> Mechanism:
        if sum(way is not None for way in (self.sysctl, self.route, self.link, self.agent)) != 1:
            raise ValueError("a setting is made by exactly one of sysctl, route, link and agent")
        if not self.values and self.takes is None:
            raise ValueError("a setting has values, or takes something")
        if self.route is not None or self.link is not None:
            for word, written in self.values.items():
                if written is not None and not str(written).isdecimal():
                    raise ValueError(f"{self.route or self.link} is a number, and values has {word}: {written}")
        return self


@dataclass(frozen=True, slots=True)
class Resolved:
    """Settings as this stack is given them: sysctls and what is written there, route metrics, the link's MTU, and
    what the agent is asked to set.
    """

    sysctls: dict[str, str] = field(default_factory=dict)
    route: dict[str, int] = field(default_factory=dict)
    mtu: int | None = None
    agent: dict[str, str] = field(default_factory=dict)


#: A word of a command. ``{interface}`` and the like stand for what the stand has (PLACEHOLDERS).
Word = Annotated[str, Field(max_length=4096)]
Command = Annotated[list[Word], Field(min_length=1)]

#: What a command's words and the environment's values may name in braces.
PLACEHOLDERS: dict[str, str] = {
    "interface": "the name of the stack's network device",
    "mtu": "its MTU in octets",
    "stack4": "the stack's IPv4 address",
    "stack6": "the stack's IPv6 address",
    "tester4": "the tester's IPv4 address, for a gateway",
    "tester6": "the tester's IPv6 address",
    "prefix4": "the length of the IPv4 prefix that both addresses share",
    "prefix6": "the length of the IPv6 prefix",
    "netmask4": "the same as a mask: 255.255.255.0",
    "namespace": "a path to the network namespace in which the device is",
    "directory": "a temporary directory, gone with the stack",
    "build": "the directory of what `conform stacks build` made",
    "here": "the directory of the description",
    "python": "the Python that runs conform",
}
_PLACEHOLDER = re.compile(r"\{([^{}]*)\}")


class ReadyLine(_Model):
    """Ready when a line of what it prints (on either stream) holds a match of this regular expression."""

    line: Annotated[str, Field(min_length=1)]

    @model_validator(mode="after")
    def _compiles(self) -> ReadyLine:
        try:
            re.compile(self.line)
        except re.error as error:
            raise ValueError(f"line is no regular expression: {error}") from None
        return self


class Start(_Model):
    """How the stack is started: a program in the stand's network namespace. ``within`` is in seconds."""

    command: Command
    environment: dict[str, str] = {}
    within: Annotated[float, Field(gt=0, le=600)] = 10.0


class AgentCommand(_Model):
    """An agent that is a program of its own, and speaks the protocol on its standard input and output."""

    command: Command
    environment: dict[str, str] = {}


class Build(_Model):
    """How what the stack needs is built: commands run in {build}, one after the other, each a list of words.

    ``needs`` names programs and files that must be there, each with what installs it; ``makes`` what must exist in
    {build} at the end.
    """

    needs: dict[str, str] = {}
    commands: Annotated[list[Command], Field(min_length=1)]
    makes: Annotated[list[str], Field(min_length=1)]


class ExistingInterface(_Model):
    """A network interface of this machine, behind which the stack is: hardware on a wire."""

    interface: Annotated[str, Field(pattern=r"^[^/\s]{1,15}$")]


class StackDescription(_Model):
    """All that is known of a stack. ``timers`` are in seconds, named as in expressions without their ``timer.``.

    ``tolerance`` is by how many seconds any of its times may be off; ``settle`` is ``fence``, or the seconds after
    which an immediate answer would have come; ``defaults`` are the settings of every trial that says no other.
    What concerns how it is started and reached is described key by key in docs/stack-description.md.
    """

    #: Where the description was read from; not one of its keys.
    _path: Path | None = PrivateAttr(default=None)

    format: Literal[1]
    """The format of this file: 1."""
    name: Annotated[str, Field(pattern=_NAME.pattern, max_length=40)]
    """The name that runs and lists of deviations know the stack by."""
    title: Annotated[str, Field(min_length=1, max_length=200)]
    """What a reader is told that it is, with its version."""
    capabilities: frozenset[CapabilityName]
    """What it can do, in words of the case format; a case that requires another is not applicable."""
    timers: dict[TimerName, Seconds]
    """Bounds of its times in seconds; all of them."""
    tolerance: Seconds
    """By how many seconds any time that the stack keeps may be off."""
    settle: Literal["fence"] | Annotated[float, Field(gt=0, allow_inf_nan=False)]
    """fence: an echo is answered behind all immediate answers; else in how many seconds they have come."""
    round_trip: Annotated[float, Field(ge=0, lt=1, allow_inf_nan=False, alias="round-trip")] = 0.0
    """How long the tester lets the stack's SYN wait for its acknowledgment, in seconds."""
    addresses: Annotated[dict[Literal["ipv4", "ipv6"], Addresses], Field(min_length=1)]
    """Both ends' addresses."""
    port: Port = 80
    """Where the first listener listens; without an agent, a port on which nothing does."""
    link: Literal["kernel", "tap", "tun", "veth", "made"] | ExistingInterface = "kernel"
    """What carries packets between conform and the stack."""
    start: Start | None = None
    """How it is started; absent for what runs already."""
    agent: Literal["none", "stack", "kernel"] | AgentCommand = "kernel"
    """Who makes socket calls in it."""
    ready: list[Literal["hello", "echo"] | ReadyLine] = []
    """What shows that it is ready, all of it."""
    reset: Literal["process", "agent", "none"] = "process"
    """What stands between two trials: a fresh process, or the agent's hello."""
    parallel: Annotated[int, Field(ge=1, le=4096)] = 64
    """How many may run at once, in the whole run."""
    services: dict[ServiceName, Port] = {}
    """Without an agent: what listens on which port."""
    build: Build | None = None
    """How what it needs is built, once."""
    install: Annotated[str, Field(max_length=500)] = ""
    """The command that installs it, for people."""
    settings: dict[SettingName, Mechanism] = {}
    """How each setting of the case format is made."""
    defaults: dict[SettingName, Value] = {}
    """Settings of every trial that says no other."""

    @model_validator(mode="after")
    def _whole(self) -> StackDescription:
        missing = [name for name in _TIMER_NAMES if name not in self.timers]
        if missing:
            raise ValueError(f"timers lacks {', '.join(missing)}")
        most = PATIENCE * self.timers["response.max"]
        if self.settle != "fence" and self.settle >= most:
            raise ValueError(
                f"settle: {self.settle} s is too long: after {PATIENCE} times response.max, {most:g} s, a stack "
                "counts as one that does not settle"
            )
        for version, pair in self.pairs.items():
            for address in pair:
                if ipaddress.ip_address(address).version != version:
                    raise ValueError(f"{address} is no IPv{version} address")
            if f"ipv{version}" not in self.capabilities:
                raise ValueError(f"addresses has IPv{version}, and capabilities lacks ipv{version}")
        self._check_start()
        self.resolve({}, {})
        return self

    def _check_start(self) -> None:
        if self.link == "kernel":
            if self.start is not None:
                raise ValueError("a stack that is started has a link of its own: link: tap, tun, veth or made")
            if self.agent != "kernel":
                raise ValueError("link: kernel is this machine's own stack, and has its agent: agent: kernel")
            return
        if isinstance(self.link, ExistingInterface):
            # All trials would hear each other's packets there.
            if "parallel" in self.model_fields_set and self.parallel != 1:
                raise ValueError("on an interface of this machine one trial runs at a time: parallel: 1")
            object.__setattr__(self, "parallel", 1)
        if self.agent == "stack" and self.start is None:
            raise ValueError("agent: stack is the started program, and nothing is started: start: {command: ...}")
        if self.start is None and not isinstance(self.link, ExistingInterface):
            raise ValueError(f"link: {self.link} wants a stack that is started: start: {{command: ...}}")
        if self.agent == "none" and "calls" in self.capabilities:
            raise ValueError("without an agent nobody makes calls: capabilities cannot have calls")
        if self.agent == "none" and self.reset == "agent":
            raise ValueError("reset: agent is made by an agent, and there is none")
        if self.start is None and self.reset == "process":
            raise ValueError("what conform does not start it cannot start afresh: reset: agent, or none")
        if "hello" in self.ready and self.agent == "none":
            raise ValueError("ready: hello is an agent's, and there is none")
        for mechanism in self.settings.values():
            if mechanism.sysctl is not None or mechanism.route is not None:
                raise ValueError("sysctl and route set this machine's kernel; other stacks' settings are the agent's")
        for command in self.commands():
            for word in command:
                for name in _PLACEHOLDER.findall(word):
                    if name not in PLACEHOLDERS:
                        near = difflib.get_close_matches(name, PLACEHOLDERS, 1)
                        raise ValueError(
                            f"{{{name}}} stands for nothing" + (f"; did you mean {{{near[0]}}}?" if near else "")
                        )

    def commands(self) -> list[list[str]]:
        """Every list of words in which placeholders may stand."""
        found: list[list[str]] = []
        if self.start is not None:
            found += [self.start.command, list(self.start.environment.values())]
        if isinstance(self.agent, AgentCommand):
            found += [self.agent.command, list(self.agent.environment.values())]
        if self.build is not None:
            found += self.build.commands
        return found

    @property
    def path(self) -> Path | None:
        """The file that it was read from."""
        return self._path

    @property
    def pairs(self) -> dict[int, tuple[str, str]]:
        """By IP version (the stack's address, the tester's)."""
        return {int(name[-1]): (pair.stack, pair.tester) for name, pair in self.addresses.items()}

    def filled(self, words: Iterable[str], values: Mapping[str, str]) -> list[str]:
        """*words* with their placeholders replaced by *values*; what *values* lacks is empty."""
        return [_PLACEHOLDER.sub(lambda match: values.get(match[1], ""), word) for word in words]

    @property
    def profile(self) -> StackProfile:
        """What the engine must know of it."""
        return StackProfile(
            name=self.name,
            capabilities=frozenset(self.capabilities),
            timers={f"timer.{name}": seconds for name, seconds in self.timers.items()},
            tolerance=self.tolerance,
            settle=self.settle,
            addresses=self.pairs,
            port=self.port,
            services=dict(self.services),
            round_trip=self.round_trip,
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
        addresses = {name: pair for name, pair in self.addresses.items() if name in left}
        return self.model_copy(update={"capabilities": left, "defaults": defaults, "addresses": addresses})

    def resolve(self, settings: Mapping[str, Value], sysctl: Mapping[str, int | str]) -> Resolved:
        """What a trial with a case's *settings* and raw *sysctl* is given, the defaults included.

        A raw sysctl wins over a setting. Raises SettingError for what this stack has no way to do.
        """
        sysctls: dict[str, str] = {}
        route: dict[str, int] = {}
        mtu = None
        agent: dict[str, str] = {}
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
            elif mechanism.agent is not None:
                agent[mechanism.agent] = mechanism.form.format(written)
            else:
                mtu = int(written)
        if sysctl and "linux" not in self.capabilities:
            raise SettingError(f"{self.name} has no sysctls")
        sysctls.update((name, str(value)) for name, value in sysctl.items())
        return Resolved(sysctls, route, mtu, agent)

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


def schema() -> dict[str, Any]:
    """The JSON Schema of a description, for editors."""
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", **StackDescription.model_json_schema()}


def shipped() -> list[str]:
    """The names of the stacks that ship."""
    return sorted(each.stem for each in Path(__file__).parent.glob("*.yaml"))


def load(name_or_path: str | Path) -> StackDescription:
    """The description that ships under that name (``linux``), or the one in that file.

    Raises DescriptionError, whose text names each fault with its file, line, column and a caret.
    """
    path = Path(name_or_path)
    if _NAME.fullmatch(str(name_or_path)) and not path.exists():
        path = Path(__file__).with_name(f"{name_or_path}.yaml")
        if not path.is_file():
            near = located.did_you_mean(str(name_or_path), shipped(), few=20)
            raise DescriptionError(f"there is no stack {name_or_path!r}, and no such file; {near}")
    read = located.read(path, str(name_or_path) if path.suffix != ".yaml" else str(path))
    if isinstance(read, located.Problem):
        raise DescriptionError(str(read))
    root, problems = located.parse(read, "a stack's description is a mapping (format: 1, name: …, title: …)")
    if problems or root is None:
        raise DescriptionError("\n".join(map(str, problems)))
    try:
        found = StackDescription.model_validate(located.plain(root))
    except ValidationError as error:
        told = [_problem(read, root, each) for each in error.errors(include_url=False)]
        raise DescriptionError("\n".join(dict.fromkeys(map(str, told)))) from None
    found._path = path.resolve()
    return found


def _problem(read: located.Source, root: located.Map, error: Any) -> located.Problem:
    """One of pydantic's errors, at its place."""
    node: located.Node = root
    key: located.Scalar | None = None
    trail: list[str] = []
    missing = None
    for part in error["loc"]:
        if isinstance(node, located.Map) and isinstance(part, str) and part in node.entries:
            key, node = node.entries[part]
            trail.append(part)
        elif isinstance(node, located.Seq) and isinstance(part, int) and part < len(node.items):
            key, node = None, node.items[part]
        elif error["type"] == "missing":
            missing = part
    at = node if isinstance(node, located.Scalar) or key is None else key
    where = f"{'.'.join(trail)}: " if trail else ""
    if error["type"] == "missing":
        return read.problem(at, f"{where}{missing} is missing")
    if error["type"] == "extra_forbidden" and key is not None:
        known = _keys(trail[:-1])
        return read.problem(key, f"unknown key {key.text[:60]!r}", located.did_you_mean(key.text, known, few=24))
    return read.problem(at, where + error["msg"].removeprefix("Value error, "))


def _keys(trail: list[str]) -> list[str]:
    """The keys that the mapping at *trail* may have."""
    below: dict[str, type[BaseModel]] = {"start": Start, "build": Build, "agent": AgentCommand}
    if not trail:
        return list(StackDescription.model_fields)
    if trail[0] in below:
        return list(below[trail[0]].model_fields)
    if trail[0] in ("settings", "addresses") and len(trail) > 1:
        return list((Mechanism if trail[0] == "settings" else Addresses).model_fields)
    return []
