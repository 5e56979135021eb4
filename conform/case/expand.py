"""Templates and the matrix: one located case to its rows, each complete, each node where it was written.

``${name}`` alone stands for the value, with its type; inside a longer text it is put in as text; as an item of a
list it puts in each item of a list. ``$${name}`` is the text ``${name}``. A null makes its key unsaid.
"""

from __future__ import annotations

import itertools
import math
import re
from collections.abc import Iterator
from dataclasses import dataclass, field

from conform.case.source import Map, Node, Problem, Scalar, Seq, Source, did_you_mean

#: More rows than this are a mistake, and so are more nodes in one row, in all rows together, and deeper ones. What the
#: rows share counts for each: they are written out before they are run.
MOST_ROWS = 4096
MOST_NODES = 50_000
MOST_IN_ALL = 250_000
DEEPEST = 48
_LONGEST_TEXT = 1 << 16
#: What variables put into texts, in all rows together.
_MOST_TEXT = 4 << 20
_LONGEST_ID = 100
#: So many variables may be needed for the value of one.
_DEEPEST = 32

_VARIABLE = re.compile(r"\$(\$?)\{([^{}]*)\}")
_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]*(-[A-Za-z][A-Za-z0-9_]*)*\Z")
_ID = re.compile(r"[A-Za-z0-9._+-]+\Z")
_MATRIX_KEYS = ("axes", "rows", "except")
#: The keys whose mappings can use a template.
USERS = ("send", "expect", "call", "start")


@dataclass(slots=True)
class Expanded:
    """One row of a case: its id (empty if there is no matrix) and the case's mapping without templates and matrix."""

    id: str
    root: Map


@dataclass(slots=True)
class _Row:
    values: dict[str, tuple[Scalar, Node]] = field(default_factory=dict)
    id: str = ""
    at: Node | None = None


class _TooLargeError(Exception):
    pass


def _exact(text: str) -> str | None:
    """The name in *text* if it is ``${name}`` and nothing else."""
    match = _VARIABLE.fullmatch(text)
    return match[2].strip() if match and not match[1] else None


def slug(text: str) -> str:
    """*text* made fit for a file name and still readable: ``RCV.NXT + 1`` is ``RCV.NXT+1``. Too long, it is cut."""
    text = re.sub(r" ?([-+]) ?", r"\1", " ".join(text.split()))
    text = re.sub(r"[^A-Za-z0-9._+-]+", "_", text)
    return re.sub(r"\.{2,}", "..", text).strip("._")[: _LONGEST_ID + 1] or "empty"


class _Expander:
    def __init__(self, source: Source, root: Map) -> None:
        self.source = source
        self.root = root
        self.problems: list[Problem] = []
        self.broken_templates: set[str] = set()
        self.templates = self._templates()
        self.used_templates: set[str] = set()
        self.used: set[str] = set()
        self.known: dict[str, Scalar] = {}
        self.row = _Row()
        self.cache: dict[str, Node | None] = {}
        self.active: list[str] = []
        self.count = 0
        self.static: dict[int, bool] = {}
        #: Of static nodes: how many nodes each is, and how deep.
        self.sizes: dict[int, tuple[int, int]] = {}
        self.text = 0

    def fault(self, node: Node, message: str, hint: str = "", offset: int | None = None, length: int = 1) -> None:
        self.problems.append(self.source.problem(node, message, hint, offset, length))

    # Templates -------------------------------------------------------------------------------------------------------
    def _templates(self) -> dict[str, tuple[Scalar, Map]]:
        found: dict[str, tuple[Scalar, Map]] = {}
        entry = self.root.entries.get("templates")
        if entry is None:
            return found
        if not isinstance(entry[1], Map):
            self.fault(entry[0], "templates is a mapping of names to fields: templates: {NAME: {flags: A, …}}")
            return found
        for name, (key, value) in entry[1].entries.items():
            self.broken_templates.add(name)
            if not _NAME.match(name):
                self.fault(key, f"{name!r} is no name: letters, digits, '_', and '-' before a letter")
            elif not isinstance(value, Map):
                self.fault(key, f"the template {name!r} is not a mapping of fields")
            else:
                self.broken_templates.discard(name)
                found[name] = (key, value)
        return found

    def _use(self, fields: Map) -> Map:
        """*fields*, which has ``use``, with the template's fields put before its own. A field of its own wins."""
        chain: list[Map] = [fields]
        seen: list[str] = []
        while "use" in chain[-1].entries:
            value = self._resolve(chain[-1].entries["use"][1])
            name = value.value if isinstance(value, Scalar) else None
            if not isinstance(name, str):
                self.fault(chain[-1].entries["use"][0], "use names one template")
                break
            if name not in self.templates:
                if name in self.broken_templates:
                    break
                self.fault(value, f"there is no template {name!r}", did_you_mean(name, self.templates, few=8))
                break
            self.used_templates.add(name)
            if name in seen:
                self.fault(value, f"the templates use each other in a circle: {' -> '.join([*seen, name])}")
                break
            seen.append(name)
            chain.append(self.templates[name][1])
        merged: dict[str, tuple[Scalar, Node]] = {}
        for part in reversed(chain):
            merged.update({key: entry for key, entry in part.entries.items() if key != "use"})
        return Map(merged, fields.line, fields.column)

    # Substitution ----------------------------------------------------------------------------------------------------
    def _is_static(self, node: Node) -> bool:
        """Whether *node* stays as it is in every row."""
        known = self.static.get(id(node))
        if known is not None:
            return known
        if isinstance(node, Scalar):
            answer = not (isinstance(node.value, str) and "${" in node.value)
        elif isinstance(node, Seq):
            answer = False not in [self._is_static(item) for item in node.items]
        else:
            # All are asked, not only those up to the first that is not: what is asked here is known later.
            answer = False not in [self._is_static_entry(key, value) for key, (_, value) in node.entries.items()]
        self.static[id(node)] = answer
        return answer

    def _is_static_entry(self, key: str, value: Node) -> bool:
        unsaid = isinstance(value, Scalar) and value.value is None
        uses = key in USERS and isinstance(value, Map) and "use" in value.entries
        return self._is_static(value) and not unsaid and not uses

    def _resolve(self, node: Node) -> Node:
        if self.static.get(id(node)):
            return node
        self.count += 1
        if self.count > MOST_NODES:
            raise _TooLargeError
        if isinstance(node, Scalar):
            return self._text(node) if isinstance(node.value, str) and "${" in node.value else node
        if isinstance(node, Seq):
            items: list[Node] = []
            for item in node.items:
                resolved = self._resolve(item)
                if resolved is not item and isinstance(item, Scalar) and isinstance(resolved, Seq):
                    items.extend(resolved.items)
                    self.count += len(resolved.items)
                else:
                    items.append(resolved)
            return Seq(items, node.line, node.column)
        entries: dict[str, tuple[Scalar, Node]] = {}
        for key, (at, value) in node.entries.items():
            if key in USERS and isinstance(value, Map) and "use" in value.entries:
                value = self._use(value)
            resolved = self._resolve(value)
            if not (isinstance(resolved, Scalar) and resolved.value is None and resolved.text):
                entries[key] = (at, resolved)
        return Map(entries, node.line, node.column)

    def _variable(self, name: str, node: Scalar, offset: int) -> Node | None:
        self.used.add(name)
        if name in self.cache:
            return self.cache[name]
        entry = self.row.values.get(name)
        if entry is None:
            if not self.known:
                message, hint = (
                    f"${{{name}}} is a matrix's variable, and the case has no matrix",
                    "write $${…} for the text itself",
                )
            elif name in self.known:
                at = f" (line {self.row.at.line})" if self.row.at is not None else ""
                message, hint = (
                    f"${{{name}}} has no value in the row {self.row.id!r}{at}",
                    f"add {name} to that row, null if there is none",
                )
            else:
                message, hint = f"${{{name}}} is not a variable of the matrix", did_you_mean(name, self.known, few=8)
            self.fault(node, message, hint, offset, len(name) + 3)
            return None
        if name in self.active:
            self.fault(
                node,
                f"the variables refer to each other in a circle: {' -> '.join([*self.active, name])}",
                "",
                offset,
                len(name) + 3,
            )
            return None
        if len(self.active) >= _DEEPEST:
            raise _TooLargeError
        self.active.append(name)
        value = self._resolve(entry[1])
        self.active.pop()
        self.cache[name] = value
        return value

    def _text(self, node: Scalar) -> Node:
        text: str = node.value
        if (name := _exact(text)) is not None:
            value = self._variable(name, node, 0)
            return node if value is None else value
        parts: list[str] = []
        end = length = 0
        for match in _VARIABLE.finditer(text):
            parts.append(text[end : match.start()])
            end = match.end()
            if match[1]:
                parts.append(f"${{{match[2]}}}")
                continue
            name = match[2].strip()
            value = self._variable(name, node, match.start())
            if value is None:
                continue
            if not isinstance(value, Scalar) or value.value is None:
                what = "nothing" if isinstance(value, Scalar) else "a list" if isinstance(value, Seq) else "a mapping"
                self.fault(
                    node, f"${{{name}}} is {what} and cannot stand inside a text", "", match.start(), len(name) + 3
                )
                continue
            parts.append(value.value if isinstance(value.value, str) else value.text)
            length += len(parts[-1])
            if length > _LONGEST_TEXT:
                raise _TooLargeError
        whole = "".join(parts) + text[end:]
        self.text += len(whole)
        if self.text > _MOST_TEXT:
            raise _TooLargeError
        # The new text is nowhere in the file, so that a caret can only stand under the whole.
        return Scalar(whole, whole, node.line, node.column, node.width, node.inset)

    def _size(self, node: Node, own: dict[int, tuple[int, int]]) -> tuple[int, int]:
        """How many nodes *node* is, and how deep, once it is written out; *own* keeps those of one row."""
        known = self.sizes.get(id(node)) or own.get(id(node))
        if known is not None:
            return known
        if isinstance(node, Scalar):
            return 1, 1
        inner = node.items if isinstance(node, Seq) else [value for _, value in node.entries.values()]
        nodes, depth = (1 if isinstance(node, Seq) else 1 + len(inner)), 0
        for each in inner:
            within, deep = self._size(each, own)
            nodes, depth = nodes + within, max(depth, deep)
        if nodes > MOST_NODES or depth >= DEEPEST:
            raise _TooLargeError
        (self.sizes if self.static.get(id(node)) else own)[id(node)] = nodes, depth + 1
        return nodes, depth + 1

    # The matrix ------------------------------------------------------------------------------------------------------
    def rows(self) -> list[_Row]:
        """The matrix's rows; one without values if there is no matrix; none if it is wrong."""
        entry = self.root.entries.get("matrix")
        if entry is None:
            return [_Row()]
        key, matrix = entry
        before = len(self.problems)
        if not isinstance(matrix, Map):
            self.fault(key, "matrix is a mapping with axes, rows or both")
            return []
        for name, (at, _) in matrix.entries.items():
            if name not in _MATRIX_KEYS:
                self.fault(at, f"unknown key {name!r} in matrix", did_you_mean(name, _MATRIX_KEYS, few=8))
        if not ("axes" in matrix.entries or "rows" in matrix.entries or len(self.problems) > before):
            self.fault(key, "a matrix has axes, rows or both")
        axes = self._axes(matrix)
        rows = self._listed_rows(matrix, axes)
        total = math.prod(len(values) for _, values in axes.values()) * len(rows)
        if total > MOST_ROWS:
            self.fault(key, f"the matrix has {total:,} rows, and at most {MOST_ROWS:,} are allowed")
        elif total * len(self.known) > MOST_IN_ALL:
            self.fault(key, f"{total:,} rows of {len(self.known):,} variables are too many")
        if len(self.problems) > before:
            return []
        product = list(self._product(axes, rows))
        product = self._without_exceptions(matrix, product)
        self._check_ids(key, product)
        return product if len(self.problems) == before else []

    def _axes(self, matrix: Map) -> dict[str, tuple[Scalar, list[Scalar]]]:
        axes: dict[str, tuple[Scalar, list[Scalar]]] = {}
        if (entry := matrix.entries.get("axes")) is None:
            return axes
        if not isinstance(entry[1], Map) or not entry[1].entries:
            self.fault(entry[0], "axes is a mapping of names to lists of values: axes: {state: [LISTEN, CLOSE-WAIT]}")
            return axes
        for name, (at, values) in entry[1].entries.items():
            if not self._is_variable(at):
                continue
            if not isinstance(values, Seq) or not values.items:
                self.fault(at, f"the axis {name!r} needs a list of at least one value")
                continue
            scalars = [item for item in values.items if isinstance(item, Scalar)]
            for item in values.items:
                if not isinstance(item, Scalar):
                    self.fault(
                        item, f"a value of the axis {name!r} is a single value", "rows can hold lists and mappings"
                    )
            seen: dict[tuple[type, object], Scalar] = {}
            for item in scalars:
                if not self._is_static(item):
                    self.fault(item, "a value of an axis cannot refer to a variable")
                elif seen.setdefault((type(item.value), item.value), item) is not item:
                    self.fault(item, f"the axis {name!r} has the value {item.text[:40]!r} twice")
            axes[name] = (at, scalars)
        return axes

    def _is_variable(self, key: Scalar) -> bool:
        if not _NAME.match(key.text) or key.text == "id":
            self.fault(
                key, f"{key.text[:40]!r} cannot be a variable: a name is letters, digits, '_', and '-' before a letter"
            )
            return False
        self.known.setdefault(key.text, key)
        return True

    def _listed_rows(self, matrix: Map, axes: dict[str, tuple[Scalar, list[Scalar]]]) -> list[_Row]:
        if (entry := matrix.entries.get("rows")) is None:
            return [_Row()]
        if not isinstance(entry[1], Seq) or not entry[1].items:
            self.fault(entry[0], "rows is a list of at least one mapping: rows: [{id: first, delta: 0}, …]")
            return []
        rows: list[_Row] = []
        for item in entry[1].items:
            if not isinstance(item, Map) or not item.entries:
                self.fault(item, "a row is a mapping of variables to values")
                continue
            row = _Row(at=item)
            for name, (at, value) in item.entries.items():
                if name == "id":
                    self._row_id(row, value)
                elif name in axes:
                    self.fault(at, f"{name!r} is an axis already, in line {axes[name][0].line}")
                elif self._is_variable(at):
                    row.values[name] = (at, value)
            if not row.id:
                scalars = [v for _, v in row.values.values() if isinstance(v, Scalar)]
                row.id = ".".join(slug(v.text) for v in scalars)
                if not row.id and "id" not in item.entries:
                    self.fault(item, "the row has no single values to be named by", "give it an id: NAME")
            rows.append(row)
        return rows

    def _row_id(self, row: _Row, value: Node) -> None:
        text = value.text if isinstance(value, Scalar) else ""
        if _ID.match(text) and len(text) <= _LONGEST_ID:
            row.id = text
        else:
            self.fault(value, f"a row's id has 1 to {_LONGEST_ID} letters, digits, and any of '._+-'")

    def _product(self, axes: dict[str, tuple[Scalar, list[Scalar]]], rows: list[_Row]) -> Iterator[_Row]:
        names = list(axes)
        named = [[(value, slug(value.text)) for value in values] for _, values in axes.values()]
        for choice in itertools.product(*named):
            own = {name: (axes[name][0], value) for name, (value, _) in zip(names, choice, strict=True)}
            head = [text for _, text in choice]
            for row in rows:
                yield _Row({**own, **row.values}, ".".join([*head, row.id] if row.id else head), row.at)

    def _without_exceptions(self, matrix: Map, rows: list[_Row]) -> list[_Row]:
        if (entry := matrix.entries.get("except")) is None:
            return rows
        if not isinstance(entry[1], Seq) or not entry[1].items:
            self.fault(entry[0], "except is a list: except: [{state: LISTEN, why: …}]")
            return rows
        left = rows
        for item in entry[1].items:
            if not isinstance(item, Map):
                self.fault(item, "an exception is a mapping: {state: LISTEN, why: …}")
                continue
            why = item.get("why")
            if not isinstance(why, Scalar) or not isinstance(why.value, str) or not why.value.strip():
                self.fault(item, "an exception says why: {…, why: TEXT}")
            conditions = {name: pair for name, pair in item.entries.items() if name != "why"}
            unknown = [at for name, (at, _) in conditions.items() if name not in self.known]
            for at in unknown:
                self.fault(at, f"{at.text!r} is not a variable of the matrix", did_you_mean(at.text, self.known, few=8))
            if unknown:
                continue
            if not conditions:
                self.fault(item, "an exception says which rows: {NAME: VALUE, why: …}")
                continue
            hit = [row for row in rows if all(_fits(row.values.get(n), value) for n, (_, value) in conditions.items())]
            if not hit:
                self.fault(item, "this exception excludes no row", "does a value differ in spelling or type?")
            gone = {id(row) for row in hit}
            left = [row for row in left if id(row) not in gone]
        if not left:
            self.fault(entry[0], "the exceptions exclude every row")
        return left

    def _check_ids(self, key: Scalar, rows: list[_Row]) -> None:
        seen: dict[str, str] = {}
        for row in rows:
            first = seen.get(row.id.lower())
            at = row.at or key
            if len(row.id) > _LONGEST_ID:
                self.fault(
                    at, f"the row's id is longer than {_LONGEST_ID} characters: {row.id[:40]}…", "give it an id: NAME"
                )
            elif first is None:
                seen[row.id.lower()] = row.id
            elif first != row.id:
                self.fault(at, f"the ids {first!r} and {row.id!r} differ only in case", "give the row an id: NAME")
            else:
                self.fault(at, f"two rows have the id {row.id!r}", "give each an id of its own: id: NAME")

    # Together --------------------------------------------------------------------------------------------------------
    def expand(self) -> list[Expanded]:
        rows = self.rows()
        body = Map(
            {k: e for k, e in self.root.entries.items() if k not in ("matrix", "templates")},
            self.root.line,
            self.root.column,
        )
        body = self._with_then(body, rows)
        # Known by id(), so only of nodes that live as long as this does.
        self._is_static(body)
        for _, template in self.templates.values():
            self._is_static(template)
        for row in rows:
            for _, value in row.values.values():
                self._is_static(value)
        expanded: list[Expanded] = []
        total = 0
        for row in rows:
            self.row, self.cache, self.active, self.count = row, {}, [], 0
            try:
                root = self._resolve(body)
                total += self._size(root, {})[0]
            except _TooLargeError:
                self.fault(row.at or self.root, "the case grows too large by its templates and variables")
                break
            if total > MOST_IN_ALL:
                key = self.root.entries["matrix"][0]
                message = f"the case grows too large: its rows have more than {MOST_IN_ALL:,} keys and values in all"
                self.fault(key, message, "make several cases of it")
                return []
            assert isinstance(root, Map)
            expanded.append(Expanded(row.id, root))
        if rows and len(expanded) == len(rows):
            for name, (key, _) in self.templates.items():
                if name not in self.used_templates:
                    self.fault(key, f"the template {name!r} is never used")
            for name, key in self.known.items():
                if name not in self.used:
                    self.fault(
                        key,
                        f"the variable {name!r} is never used",
                        f'it stands for its value where you write "${{{name}}}"',
                    )
        return expanded

    def _with_then(self, body: Map, rows: list[_Row]) -> Map:
        """Append the rows' ``then`` where the steps do not say where it goes."""
        if "then" not in self.known or self._mentions_then(body):
            return body
        for row in rows:
            if "then" in row.values:
                at, value = row.values["then"]
                if isinstance(value, Map):
                    row.values["then"] = (at, Seq([value], value.line, value.column))
                elif not isinstance(value, Seq):
                    self.fault(at, "then is a list of steps")
            else:
                row.values["then"] = (self.known["then"], Seq([], self.known["then"].line, self.known["then"].column))
        steps = body.entries.get("steps")
        at = self.known["then"]
        marker = Scalar("${then}", "${then}", at.line, at.column, at.width)
        if steps is None:
            listed: Seq = Seq([marker], at.line, at.column)
            return Map({**body.entries, "steps": (at, listed)}, body.line, body.column)
        if not isinstance(steps[1], Seq):
            return body
        listed = Seq([*steps[1].items, marker], steps[1].line, steps[1].column)
        return Map({**body.entries, "steps": (steps[0], listed)}, body.line, body.column)

    def _mentions_then(self, body: Map) -> bool:
        pending: list[Node] = [body, *(template for _, template in self.templates.values())]
        while pending:
            node = pending.pop()
            if isinstance(node, Scalar):
                if isinstance(node.value, str) and any(
                    m[2].strip() == "then" and not m[1] for m in _VARIABLE.finditer(node.value)
                ):
                    return True
            elif isinstance(node, Seq):
                pending += node.items
            else:
                pending += [value for _, value in node.entries.values()]
        return False


def _fits(actual: tuple[Scalar, Node] | None, wanted: Node) -> bool:
    if actual is None or not isinstance(actual[1], Scalar):
        return False
    values = wanted.items if isinstance(wanted, Seq) else [wanted]
    found = actual[1].value
    return any(isinstance(v, Scalar) and type(v.value) is type(found) and v.value == found for v in values)


def expand(source: Source, root: Map) -> tuple[list[Expanded], list[Problem]]:
    """The rows of the case *root*, and the problems found in its templates and its matrix.

    A case without a matrix has one row, whose id is empty; one whose matrix is wrong has none.
    """
    expander = _Expander(source, root)
    return expander.expand(), expander.problems
