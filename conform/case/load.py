"""Files to cases: everything that is wrong with any of them is found in one go, each with its place.

``load`` is the way in. A file is read (``source``), expanded to its rows (``expand``), given its recipe (``recipes``),
validated against the format (``model``) and checked step by step (``flow``).
"""

from __future__ import annotations

import os
import re
import typing
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

from conform.case import flow, model
from conform.case import source as located
from conform.case.expand import expand
from conform.case.model import PLACE, STEP_KINDS, Case, Given
from conform.case.recipes import NoRecipeError, recipe
from conform.case.source import Map, Node, Problem, Scalar, Seq, Source, did_you_mean, plain
from conform.case.values import octets_of
from conform.requirements import catalogue

SUFFIX = ".yaml"
#: A directory of this name holds known deviations, not cases.
NOT_CASES = "expectations"
ROOT = "cases"
#: Rows with problems after which the rest of a matrix is not looked at, and pydantic's errors of one row.
_MOST_BAD_ROWS = 100
#: What the payloads of all rows may be together: each is octets in memory.
MOST_OCTETS = 16 << 20
_MOST_ERRORS = 500


@dataclass(slots=True)
class Row:
    """One row of a case. ``id`` is empty where there is no matrix.

    ``document`` is the resolved case as JSON-able data: no templates, no matrix, ``recipe`` filled in, each step with
    its ``[line, column]`` under ``"@"``. ``Case.model_validate(document)`` gives ``case`` again.
    """

    id: str
    document: dict[str, Any]
    case: Case


@dataclass(slots=True)
class LoadedCase:
    """A file that is sound. ``case_id`` is its path below ``cases``, without the suffix, with ``/``."""

    case_id: str
    path: Path
    text: str
    lines: list[str]
    rows: list[Row]


@dataclass(slots=True)
class Loaded:
    """What was found: the sound cases by id, and every problem of the others, in the order of files and lines."""

    cases: list[LoadedCase] = field(default_factory=list)
    problems: list[Problem] = field(default_factory=list)


# Files ---------------------------------------------------------------------------------------------------------------
_PART = re.compile(r"[A-Za-z0-9_+-][A-Za-z0-9._+-]*\Z")


def case_id(path: Path, root: Path | None = None) -> str:
    """The id of the case in *path*: its path below the nearest ``cases``, else below *root*, else its name."""
    parts = path.absolute().with_suffix("").parts
    if ROOT in parts[:-1]:
        last = len(parts) - 2 - parts[:-1][::-1].index(ROOT)
        return "/".join(parts[last + 1 :])
    if root is not None:
        return path.with_suffix("").relative_to(root).as_posix()
    return path.stem


def _walk(top: Path, problems: list[Problem]) -> Iterator[Path]:
    def failed(error: OSError) -> None:
        problems.append(Problem(str(error.filename), 0, 0, f"the directory cannot be read: {error.strerror}"))

    for directory, below, names in os.walk(top, onerror=failed):
        below[:] = sorted(name for name in below if name != NOT_CASES and not name.startswith("."))
        for name in sorted(names):
            path = Path(directory, name)
            if name.startswith("."):
                continue
            if name.endswith(SUFFIX):
                yield path
            elif name.endswith(".yml"):
                problems.append(
                    Problem(
                        str(path), 0, 0, "the name of a case ends in .yaml, so this would be left out", hint="rename it"
                    )
                )


def _files(paths: Sequence[Path], problems: list[Problem]) -> Iterator[tuple[Path, Path | None]]:
    """Each file with the directory that was given, if one was."""
    for path in paths:
        if path.is_dir():
            before = len(problems)
            found = list(_walk(path, problems))
            if not found and len(problems) == before:
                problems.append(Problem(str(path), 0, 0, "there is no case in this directory: no file named *.yaml"))
            for file in found:
                yield file, path
        elif path.suffix != SUFFIX:
            there = os.path.lexists(path)
            problems.append(
                Problem(str(path), 0, 0, "the name of a case ends in .yaml" if there else "there is no such file")
            )
        elif not os.path.lexists(path):
            problems.append(Problem(str(path), 0, 0, "there is no such file"))
        else:
            yield path, None


def load(paths: Sequence[Path]) -> Loaded:
    """All cases in *paths*, files and directories, and everything that is wrong with any of them.

    A file that is named twice is loaded once. Nothing is raised for what a file holds or lacks.
    """
    loaded = Loaded()
    seen: set[str] = set()
    ids: dict[str, tuple[str, Path]] = {}
    for path, root in _files([Path(p) for p in paths], loaded.problems):
        real = os.path.realpath(path)
        if real in seen:
            continue
        seen.add(real)
        name = case_id(path, root)
        if not all(_PART.match(part) for part in name.split("/")):
            loaded.problems.append(
                Problem(
                    str(path),
                    0,
                    0,
                    f"the id of this case would be {name!r}: use only letters, digits and any of '._+-'",
                )
            )
            continue
        other = ids.setdefault(name.lower(), (name, path))[1]
        if other is not path:
            loaded.problems.append(Problem(str(path), 0, 0, f"this case and {other} have the same id, {name}"))
            continue
        case, problems = load_file(path, name)
        loaded.problems += problems
        if case is not None:
            loaded.cases.append(case)
    loaded.cases.sort(key=lambda case: case.case_id)
    return loaded


def load_file(path: Path, name: str | None = None) -> tuple[LoadedCase | None, list[Problem]]:
    """The case in *path*, called *name*, if nothing is wrong with it, and what is."""
    source = located.read(path)
    if isinstance(source, Problem):
        return None, [source]
    rows, problems = load_source(source)
    if problems:
        return None, problems
    return LoadedCase(name or case_id(path), path, source.text, source.lines, rows), []


def load_text(text: str, file: str = "case.yaml") -> tuple[list[Row], list[Problem]]:
    """The rows of the case in *text*, which problems say is in *file*, and what is wrong with it."""
    source = located.decode(text.encode("utf-8", "surrogatepass"), file)
    return ([], [source]) if isinstance(source, Problem) else load_source(source)


def load_source(source: Source) -> tuple[list[Row], list[Problem]]:
    """The rows of the case in *source*, and what is wrong with it: sorted by place, one problem for each."""
    root, problems = located.parse(source)
    rows: list[Row] = []
    if root is not None:
        expanded, more = expand(source, root)
        problems += more
        early = list(problems)
        bad_rows = octets = 0
        for one in expanded:
            for node in _payloads(one.root):
                octets += octets_of(plain(node))
                if octets > MOST_OCTETS:
                    message = f"the payloads of this case, in all its rows, are more than {MOST_OCTETS:,} octets"
                    problems.append(source.problem(node, message))
                    break
            if octets > MOST_OCTETS:
                break
            row, more = _load_row(source, one.id, one.root, bool(early))
            # What was found wrong as it was read is not found wrong again as what it was taken for.
            problems += [
                p
                for p in more
                if not any(e.line == p.line and e.column <= p.column < e.column + e.length for e in early)
            ]
            if row is not None:
                rows.append(row)
            bad_rows += bool(more)
            if bad_rows >= _MOST_BAD_ROWS:
                break
    first: dict[tuple[int, int], Problem] = {}
    for problem in problems:
        first.setdefault((problem.line, problem.column), problem)
    told = sorted(first.values(), key=lambda p: (p.line, p.column))
    if len(told) > located.MOST_PROBLEMS:
        left = len(told) - located.MOST_PROBLEMS
        told = [*told[: located.MOST_PROBLEMS], Problem(source.file, 0, 0, f"{left:,} more problems are not shown")]
    return rows, told


# Located nodes to plain data -----------------------------------------------------------------------------------------
def _steps(node: Node) -> Any:
    return [_step(item) for item in node.items] if isinstance(node, Seq) else plain(node)


def _holder(node: Node) -> Any:
    """A mapping with ``steps`` in it: a branch, a repetition, the case itself."""
    if not isinstance(node, Map):
        return plain(node)
    return {key: _steps(value) if key == "steps" else plain(value) for key, (_, value) in node.entries.items()}


def _step(node: Node) -> Any:
    if not isinstance(node, Map):
        return plain(node)
    step: dict[str, Any] = {PLACE: [node.line, node.column]}
    for key, (_, value) in node.entries.items():
        if key == "one_of" and isinstance(value, Seq):
            step[key] = [_holder(item) for item in value.items]
        elif key in ("any_order", "optional"):
            step[key] = _steps(value) if isinstance(value, Seq) else _step(value)
        else:
            step[key] = _holder(value) if key == "repeat" else plain(value)
    return step


# One row -------------------------------------------------------------------------------------------------------------
def _load_row(source: Source, row_id: str, root: Map, early: bool) -> tuple[Row | None, list[Problem]]:
    """*early*: something was wrong already, so that what is missing now may be its consequence."""
    problems: list[Problem] = []
    # What only conform writes looks to the model like what a user may write.
    for name in ("recipe", "templates", "matrix"):
        if name in root.entries:
            problems.append(source.problem(root.entries[name][0], f"unknown key {name!r} in the case"))
    problems += [source.problem(key, f"unknown key {PLACE!r}") for key in _places(root)]
    if problems:
        return None, problems
    document = _holder(root)
    problems += _recipe(source, root, document, row_id)
    try:
        case = Case.model_validate(document, by_alias=True, by_name=False)
    except ValidationError as error:
        problems += translate(source, root, error.errors(include_url=False)[:_MOST_ERRORS], early)
        problems += _catalogue_problems(source, root)
        return None, problems
    problems += _catalogue_problems(source, root)
    if not problems and not early:
        problems += [_fault(source, root, fault) for fault in flow.check(case)]
    return Row(row_id, document, case), problems


def _places(root: Map) -> Iterator[Scalar]:
    pending: list[Node] = [root]
    while pending:
        node = pending.pop()
        if isinstance(node, Map):
            if PLACE in node.entries:
                yield node.entries[PLACE][0]
            pending += [value for _, value in node.entries.values()]
        elif isinstance(node, Seq):
            pending += node.items


def _payloads(root: Map) -> Iterator[Node]:
    """What is, if it is sound, a payload: what may ask for many octets in a few characters."""
    pending: list[Node] = [root]
    while pending:
        node = pending.pop()
        if isinstance(node, Seq):
            pending += reversed(node.items)
        elif isinstance(node, Map):
            for key, (_, value) in reversed(node.entries.items()):
                if key in ("payload", "data"):
                    yield value
                elif not isinstance(value, Scalar):
                    pending.append(value)


def _recipe(source: Source, root: Map, document: dict[str, Any], row_id: str) -> list[Problem]:
    written = document.get("given", "CLOSED")
    try:
        given = Given.model_validate(
            {"state": written} if isinstance(written, str) else written, by_alias=True, by_name=False
        )
    except ValidationError:
        return []  # the case's own validation says what is wrong
    key, node = root.entries.get("given", (None, root))
    place = (key.line, key.column) if key is not None else (root.line, root.column)
    try:
        document["recipe"] = recipe(given, document, place)
    except NoRecipeError as error:
        at = node.entries[error.key][1] if isinstance(node, Map) and error.key in node.entries else node
        return [source.problem(at, f"{error} (row {row_id})" if row_id else str(error))]
    return []


def _fault(source: Source, root: Map, fault: flow.Fault) -> Problem:
    where = _locate(root, fault.loc)
    node = where.key if fault.at_key and where.key is not None else where.at
    return source.problem(node, fault.message, fault.hint, fault.offset, fault.length)


def _catalogue_problems(source: Source, root: Map) -> list[Problem]:
    """Ids in covers and violates that the catalogue does not have."""
    known = catalogue()
    problems: list[Problem] = []
    pending: list[Node] = [root]
    while pending:
        node = pending.pop()
        if isinstance(node, Seq):
            pending += node.items
        elif isinstance(node, Map):
            for key, (_, value) in node.entries.items():
                if key in ("covers", "violates"):
                    for item in value.items if isinstance(value, Seq) else [value]:
                        if isinstance(item, Scalar) and isinstance(item.value, str) and item.value not in known:
                            hint = did_you_mean(item.value, known)
                            problems.append(
                                source.problem(
                                    item, f"there is no requirement {item.value[:60]!r} in the catalogue", hint
                                )
                            )
                elif not isinstance(value, Scalar):
                    pending.append(value)
    return problems


# Pydantic's errors, in our words, at their places --------------------------------------------------------------------
@dataclass(slots=True)
class _Where:
    node: Node
    key: Scalar | None
    rest: tuple[int | str, ...]
    models: frozenset[type[BaseModel]]
    trail: tuple[str, ...]
    parent: Node | None = None

    @property
    def at(self) -> Node:
        """Where a caret for the whole node stands: under the key of a mapping or a list, else under its first key."""
        node = self.node
        if isinstance(node, Scalar):
            return node
        if self.key is not None:
            return self.key
        return next(iter(node.entries.values()))[0] if isinstance(node, Map) and node.entries else node


@cache
def _fields(of: type[BaseModel]) -> dict[str, Any]:
    """A model's keys as they are written, each with what its annotation says; without what only conform writes."""
    found = {info.alias or name: info.annotation for name, info in of.model_fields.items()}
    found.pop(PLACE, None)
    if of is Case:
        found.pop("recipe")
    return found


def _models_in(annotation: Any) -> frozenset[type[BaseModel]]:
    if isinstance(annotation, type) and not typing.get_args(annotation):
        return frozenset({annotation}) if issubclass(annotation, BaseModel) else frozenset()
    return frozenset().union(*(_models_in(a) for a in typing.get_args(annotation) if not isinstance(a, str)))


@cache
def _below(of: type[BaseModel], key: str) -> frozenset[type[BaseModel]]:
    hints = typing.get_type_hints(of, vars(model), include_extras=False)
    names = {info.alias or name: name for name, info in of.model_fields.items()}
    return _models_in(hints[names[key]]) if key in names else frozenset()


def _locate(root: Map, loc: Iterable[int | str]) -> _Where:
    """Where pydantic's *loc* leads: what is no key and no index there is the tag of a union and is passed over."""
    node: Node = root
    parent: Node | None = None
    key: Scalar | None = None
    models: frozenset[type[BaseModel]] = frozenset({Case})
    trail: tuple[str, ...] = ()
    rest: list[int | str] = []
    parts = list(loc)
    for index, part in enumerate(parts):
        tagged = next((m for m in models if m.__name__ == part), None)
        if tagged is not None:
            models = frozenset({tagged})
            continue
        if isinstance(part, str) and any(part in _fields(m) for m in models):
            below = frozenset[type[BaseModel]]().union(*(_below(m, part) for m in models))
        else:
            below = models
        if isinstance(node, Map) and isinstance(part, str) and part in node.entries:
            if parts[index + 1 : index + 2] == ["[key]"]:
                return _Where(node.entries[part][0], node.entries[part][0], (), models, trail, node)
            parent = node
            key, node = node.entries[part]
            trail += (part,)
            models = below
        elif isinstance(node, Seq) and isinstance(part, int) and part < len(node.items):
            parent, key, node = node, None, node.items[part]
        elif isinstance(part, str) and part in {k for m in models for k in _fields(m)}:
            rest.append(part)
            if not isinstance(node, Map) and index + 1 < len(parts):
                models = below  # the shorthand stands for the mapping
    return _Where(node, key, tuple(rest), models, trail, parent)


_RANGE = {"greater_than_equal": "ge", "less_than_equal": "le", "greater_than": "gt", "less_than": "lt"}
_EXPECTED = {
    "bool_type": "a boolean", "int_type": "a whole number", "int_from_float": "a whole number", "string_type": "text",
    "list_type": "a list", "dict_type": "a mapping", "model_type": "a mapping", "model_attributes_type": "a mapping",
    "tuple_type": "a list", "float_type": "a number",
}  # fmt: skip
_OTHER_BRANCH = ("literal_error", *_EXPECTED)


def describe(node: Node) -> str:
    """What *node* is, in words, for "expected …, found …"."""
    if isinstance(node, Scalar):
        value = node.value
        if value is None:
            return "nothing"
        if isinstance(value, bool):
            return f"the boolean {str(value).lower()}"
        return f"the text {value[:40]!r}" if isinstance(value, str) else f"the number {node.text}"
    return "a list" if isinstance(node, Seq) else "a mapping"


def _context(where: _Where) -> str:
    if where.models and all(issubclass(m, model.Step) for m in where.models):
        return "a step"
    if where.models and all(issubclass(m, model.Call) for m in where.models) and isinstance(where.node, (Map, Scalar)):
        do = where.node.get("do") if isinstance(where.node, Map) else where.node
        if isinstance(do, Scalar):
            return f"the call {do.value}"
    return where.trail[-1] if where.trail else "the case"


def translate(source: Source, root: Map, errors: Sequence[ErrorDetails], early: bool = False) -> list[Problem]:
    """Pydantic's *errors* as problems of the located case *root*, one for each node.

    *early* leaves out what is missing, where another problem was found before and may be the reason.
    """
    groups: dict[int, list[tuple[ErrorDetails, _Where]]] = {}
    for error in errors:
        where = _locate(root, error["loc"])
        if error["type"] == "extra_forbidden":
            groups[id(where.key)] = [(error, where)]
        else:
            groups.setdefault(id(where.node), []).append((error, where))
    problems: list[Problem] = []
    for group in groups.values():
        node = group[0][1].node
        if all(error["type"] in _OTHER_BRANCH for error, _ in group) and _nodes_below(node) & groups.keys():
            continue  # the branch of a union that wants no mapping or list; what is wrong inside is said there
        problems += _one_node(source, root, group, early)
    return problems


def _nodes_below(top: Node) -> set[int]:
    found: set[int] = set()
    pending = [top]
    while pending:
        node = pending.pop()
        if isinstance(node, Map):
            found.update(id(key) for key, _ in node.entries.values())
            below = [value for _, value in node.entries.values()]
        else:
            below = node.items if isinstance(node, Seq) else []
        found.update(map(id, below))
        pending += below
    return found


def _one_node(source: Source, root: Map, group: list[tuple[ErrorDetails, _Where]], early: bool) -> list[Problem]:
    where = group[0][1]
    node = where.node
    kinds = [error["type"] for error, _ in group]
    if isinstance(node, Scalar) and not node.text and node.value is None:
        return []  # that nothing stands there was said when it was read
    if "extra_forbidden" in kinds:
        return [_unknown_key(source, where)]
    missing = [(error, w) for error, w in group if error["type"] == "missing"]
    if missing and (isinstance(node, Map) or len(missing) == len(group)):
        if early:
            return []
        names = list(dict.fromkeys(str(error["loc"][-1]) for error, _ in missing))
        return [_missing(source, missing[0][1], names)]
    # A union tells of every branch; those that want another kind of node than what stands there say nothing of use.
    if isinstance(node, (Map, Seq)):
        own = [pair for pair in group if pair[0]["type"] not in _OTHER_BRANCH]
        group = own or group
    error, where = group[0]
    at = where.at
    custom = next((e for e, _ in group if e["type"] == "conform"), None)
    if custom is not None:
        if early and isinstance(node, Map):
            return []
        context = custom.get("ctx", {})
        return [source.problem(at, custom["msg"], context.get("hint", ""), context.get("offset"))]
    if error["type"] in ("union_tag_not_found", "union_tag_invalid"):
        return [_untagged(source, where)]
    return [_wrong_value(source, where, at, group)]


def _unknown_key(source: Source, where: _Where) -> Problem:
    key = where.key
    assert key is not None
    # The models are those of the mapping that holds the key: an unknown key leads nowhere.
    known = list(dict.fromkeys(k for m in where.models for k in _fields(m)))
    assert where.parent is not None
    inner = _Where(where.parent, None, (), where.models, where.trail[:-1])
    context = _context(inner)
    if context == "a step" and key.text in STEP_KINDS:
        has = next(kind for kind, m in STEP_KINDS.items() if m in where.models)
        return source.problem(
            key, f"a step does one thing, and this has both {has!r} and {key.text!r}", "begin a step of its own: '- '"
        )
    if where.trail[-2:-1] and where.trail[-2] in ("send", "expect", "call", "start"):
        known.append("use")
    return source.problem(key, f"unknown key {key.text[:60]!r} in {context}", did_you_mean(key.text, known, few=24))


def _missing(source: Source, where: _Where, names: list[str]) -> Problem:
    at = where.at
    if names[-1].isdigit():
        return source.problem(
            at, f"{where.trail[-1]}: expected a list of {int(names[-1]) + 1}, found {_length(where.node)} in it"
        )
    listed = " and ".join(repr(name) for name in names)
    return source.problem(at, f"{_context(where)} lacks {listed}")


def _untagged(source: Source, where: _Where) -> Problem:
    node = where.node
    if where.trail[-1:] in (("call",), ("start",)):
        do = node.get("do") if isinstance(node, Map) else node
        if isinstance(do, Scalar) and isinstance(do.value, str):
            hint = did_you_mean(do.value, model.CALL_NAMES) or f"calls: {', '.join(model.CALL_NAMES)}"
            return source.problem(do, f"there is no call {do.value[:40]!r}", hint)
        at: Node = do if do is not None else where.key or node
        return source.problem(at, "a call says what is done: call: close, or call: {do: recv, …}")
    kinds = ", ".join(STEP_KINDS)
    if not isinstance(node, Map):
        return source.problem(node, f"a step is a mapping with one of {kinds}; found {describe(node)}")
    keys = [key for key, _ in node.entries.values()]
    said = [key for key in keys if key.text not in ("why", "covers")]
    if not said:
        return source.problem(keys[0] if keys else node, f"this step does nothing: it needs one of {kinds}")
    for key in said:
        if hint := did_you_mean(key.text, STEP_KINDS):
            return source.problem(key, f"there is no step {key.text[:40]!r}", hint)
    return source.problem(said[0], f"there is no step {said[0].text[:40]!r}", f"steps: {kinds}")


def _bounds(loc: tuple[int | str, ...], where: _Where) -> str:
    """The range of the field at *loc*, from its model."""
    name = next(
        (part for part in reversed(loc) if isinstance(part, str) and any(part in _fields(m) for m in _parents(loc))),
        None,
    )
    for parent in _parents(loc):
        for field_name, info in parent.model_fields.items():
            if (info.alias or field_name) == name:
                bounds = {
                    b: getattr(m, b)
                    for m in _metadata(info)
                    for b in ("ge", "le", "gt", "lt")
                    if getattr(m, b, None) is not None
                }
                low = bounds.get("ge")
                high = bounds.get("le")
                if low is not None and high is not None:
                    return f"{low} to {high}"
    return ""


def _metadata(info: Any) -> Iterator[Any]:
    yield from info.metadata
    pending = [info.annotation]
    while pending:
        annotation = pending.pop()
        for extra in getattr(annotation, "__metadata__", ()):
            yield extra
            yield from getattr(extra, "metadata", ())
        pending += [a for a in typing.get_args(annotation) if not isinstance(a, (str, int))]


def _parents(loc: tuple[int | str, ...]) -> list[type[BaseModel]]:
    models: frozenset[type[BaseModel]] = frozenset({Case})
    found = list(models)
    for part in loc:
        tagged = next((m for m in models if m.__name__ == part), None)
        if tagged is not None:
            models = frozenset({tagged})
        elif isinstance(part, str) and any(part in _fields(m) for m in models):
            found = list(models)
            models = frozenset[type[BaseModel]]().union(*(_below(m, part) for m in models))
    return found


def _wrong_value(source: Source, where: _Where, at: Node, group: list[tuple[ErrorDetails, _Where]]) -> Problem:
    node = where.node
    error = group[0][0]
    kind, context = error["type"], error.get("ctx", {})
    name = f"{where.trail[-1]}: " if where.trail else ""
    limits = [e for e, _ in group if e["type"] in _RANGE]
    if limits and isinstance(node, Scalar):
        bounds = _bounds(limits[0]["loc"], where)
        if not bounds:
            (limit,) = [v for k, v in limits[0]["ctx"].items() if k in ("ge", "le", "gt", "lt")]
            bounds = f"{'at least' if limits[0]['type'].startswith('greater') else 'at most'} {limit}"
        return source.problem(at, f"{name}{node.text} is out of range: {bounds}")
    literals = [e for e, _ in group if e["type"] == "literal_error"]
    others = list(dict.fromkeys(_EXPECTED[e["type"]] for e, _ in group if e["type"] in _EXPECTED))
    if literals:
        choices = [c for e in literals for c in _choices(e["ctx"]["expected"])]
        if isinstance(node, Scalar) and isinstance(node.value, str):
            hint = did_you_mean(node.value, [c for c in choices if isinstance(c, str)])
            known = ", ".join([*map(_shown, choices), *others])
            if len(choices) == 1:
                return source.problem(
                    at, f"{name}expected {' or '.join([_shown(choices[0]), *others])}, found {describe(node)}", hint
                )
            if len(choices) <= 12:
                return source.problem(at, f"{name}{node.value[:40]!r} is not one of {known}", hint)
            return source.problem(
                at,
                f"{name}{node.value[:40]!r} is not known here",
                hint or f"known: {known}" if len(choices) <= 40 else hint,
            )
        expected = (
            [*others, "one of " + ", ".join(map(_shown, choices)) if len(choices) > 1 else _shown(choices[0])]
            if len(choices) <= 12
            else [*others, "a name"]
        )
        return source.problem(
            at, f"{name}expected {' or '.join(expected)}, found {describe(node)}", _boolean_hint(node, others)
        )
    if others:
        return source.problem(
            at, f"{name}expected {' or '.join(others)}, found {describe(node)}", _boolean_hint(node, others)
        )
    if kind in ("too_short", "string_too_short"):
        unit = "characters" if kind.startswith("string") else "items" if context["min_length"] != 1 else "item"
        return source.problem(at, f"{name}at least {context['min_length']} {unit}, found {_length(node)}")
    if kind in ("too_long", "string_too_long"):
        unit = "characters" if kind.startswith("string") else "items"
        return source.problem(at, f"{name}at most {context['max_length']} {unit}, found {_length(node)}")
    if kind == "string_pattern_mismatch":
        if "net" in context["pattern"]:
            return source.problem(
                at, f"{node_text(node)} is no sysctl of a network namespace", "write it as net.ipv4.tcp_sack"
            )
        return source.problem(at, f"{node_text(node)} is no name: letters, digits, '_', and '-' before a letter")
    return source.problem(at, f"{name}{error['msg']}")


def node_text(node: Node) -> str:
    """*node* as a message quotes it."""
    return repr(node.text[:40]) if isinstance(node, Scalar) else describe(node)


def _length(node: Node) -> str:
    if isinstance(node, Scalar):
        return str(len(node.text))
    return str(len(node.items)) if isinstance(node, Seq) else str(len(node.entries))


def _boolean_hint(node: Node, expected: list[str]) -> str:
    if not isinstance(node, Scalar):
        return ""
    if "a boolean" in expected and node.text.lower() in ("yes", "no", "on", "off", "true", "false", "y", "n"):
        return "write true or false"
    if expected == ["text"] and not isinstance(node.value, str):
        return f"put it in quotes: '{node.text}'"
    return ""


def _choices(expected: str) -> list[Any]:
    """Pydantic lists a Literal's values in words: ``'a', 'b' or 1``."""
    found = re.findall(r"'((?:[^'\\]|\\.)*)'|\b(True|False|\d+)\b", expected)
    constants = {"True": True, "False": False}
    return [
        text if not other else constants.get(other, int(other) if other.isdigit() else other) for text, other in found
    ]


def _shown(choice: Any) -> str:
    return str(choice).lower() if isinstance(choice, bool) else str(choice)
