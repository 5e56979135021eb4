"""YAML text to located nodes: every mapping key, value and item of a list knows its line and column.

The tree is built from the parser's events, without recursion and without composing: aliases are refused at the first
one, before anything could grow, and nesting has a bound. Scalars are read more strictly than YAML 1.1 does: only
``true``, ``false``, ``null``, decimal and ``0x`` numbers are not text; what another reader of YAML would take for
something else (``010``, ``1_000``, ``1:30``, ``.inf``) is an error when it stands without quotes.
"""

from __future__ import annotations

import difflib
import functools
import re
import stat
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

LARGEST = 1 << 20
DEEPEST = 24
#: More values than this are no case, and more problems than this in one file are not worth telling.
MOST_VALUES = 50_000
MOST_PROBLEMS = 100
_LONGEST_NUMBER = 20
_CLIP = 140


# Problems ------------------------------------------------------------------------------------------------------------
@dataclass(frozen=True, slots=True)
class Problem:
    """What is wrong with a case, and where. ``line`` and ``column`` count from 1; 0 where a whole file is meant.

    The caret stands under ``column`` of ``source_line`` and is ``length`` characters long.
    """

    file: str
    line: int
    column: int
    message: str
    source_line: str = ""
    length: int = 1
    hint: str = ""

    @property
    def caret_offset(self) -> int:
        """How many characters of ``source_line`` stand before the caret."""
        return max(self.column - 1, 0)

    def __str__(self) -> str:
        if not self.line:
            hint = f"\n    {self.hint}" if self.hint else ""
            return f"{self.file}: {self.message}{hint}"
        text, at = self.source_line, self.caret_offset
        if len(text) > _CLIP:  # a long line is shown around its caret
            start = max(0, min(at - _CLIP // 2, len(text) - _CLIP))
            text, at = text[start : start + _CLIP], at - start
        length = max(1, min(self.length, len(text) - at))
        caret = " " * at + "^" * length
        gutter = " " * 6
        return (
            f"{self.file}:{self.line}:{self.column}: {self.message}\n"
            f"{self.line:>5} | {text}\n{gutter}| {caret}{' ' + self.hint if self.hint else ''}"
        )


def near(word: str, known: Iterable[str]) -> str | None:
    """The one of *known* that *word* was probably meant to be."""
    by_fold = {k.lower().replace("_", "-"): k for k in known}
    folded = word.lower().replace("_", "-")
    if folded in by_fold:
        return by_fold[folded]
    found = difflib.get_close_matches(folded, by_fold, 1, 0.6)
    return by_fold[found[0]] if found else None


def did_you_mean(word: str, known: Iterable[str], few: int = 0) -> str:
    """A hint: the near name, else all of *known* where they are at most *few*, else nothing."""
    known = list(known)
    found = near(word, known)
    if found is not None:
        return f"did you mean {found!r}?"
    return f"known here: {', '.join(known)}" if 0 < len(known) <= few else ""


# Nodes ---------------------------------------------------------------------------------------------------------------
@dataclass(slots=True, eq=False)
class Scalar:
    """A single value. ``text`` is what was written, without quotes; ``inset`` how far inside its token it begins."""

    value: Any
    text: str
    line: int
    column: int
    width: int = 1
    inset: int = 0


@dataclass(slots=True, eq=False)
class Seq:
    """A list."""

    items: list[Node]
    line: int
    column: int


@dataclass(slots=True, eq=False)
class Map:
    """A mapping; each entry has its key as a located scalar."""

    entries: dict[str, tuple[Scalar, Node]]
    line: int
    column: int

    def get(self, key: str) -> Node | None:
        """The value of *key*."""
        entry = self.entries.get(key)
        return entry[1] if entry else None


Node = Scalar | Seq | Map


def plain(node: Node) -> Any:
    """*node* as plain data."""
    if isinstance(node, Scalar):
        return node.value
    if isinstance(node, Seq):
        return [plain(item) for item in node.items]
    return {key: plain(value) for key, (_, value) in node.entries.items()}


@dataclass(slots=True)
class Source:
    """A file's text. ``file`` is how problems name it."""

    file: str
    text: str
    lines: list[str] = field(init=False)

    def __post_init__(self) -> None:
        self.lines = re.split(r"\r\n|\r|\n", self.text)

    def at(self, line: int, column: int, message: str, length: int = 1, hint: str = "") -> Problem:
        """A problem at that place."""
        text = self.lines[line - 1] if 0 < line <= len(self.lines) else ""
        return Problem(self.file, line, column, message, text, length, hint)

    def problem(self, node: Node, message: str, hint: str = "", offset: int | None = None, length: int = 1) -> Problem:
        """A problem of *node*; with *offset*, of the character there in its text, if the line shows it as it is."""
        if not isinstance(node, Scalar):
            return self.at(node.line, node.column, message, length, hint)
        if offset is not None:
            start = node.column - 1 + node.inset
            line = self.lines[node.line - 1] if node.line <= len(self.lines) else ""
            if line[start : start + len(node.text)] == node.text:
                return self.at(node.line, node.column + node.inset + offset, message, length, hint)
        return self.at(node.line, node.column, message, node.width, hint)


# Reading files -------------------------------------------------------------------------------------------------------
_CONTROL = re.compile("[^\t\n\r\x20-\x7e\xa0-\u2027\u202a-\ud7ff\ue000-\ufefe\uff00-\ufffd\U00010000-\U0010ffff]")


def _position(text: str, index: int) -> tuple[int, int]:
    lines = re.split(r"\r\n|\r|\n", text[:index])
    return len(lines), len(lines[-1]) + 1


def read(path: Path, file: str | None = None) -> Source | Problem:
    """The text of *path*, or what is wrong with it. *file* is its name in problems, *path* if it is not given."""
    file = str(path) if file is None else file

    def whole(message: str, hint: str = "") -> Problem:
        return Problem(file, 0, 0, message, hint=hint)

    try:
        status = path.stat()
        if not stat.S_ISREG(status.st_mode):  # opening a FIFO would wait for ever
            return whole("this is not a regular file")
        if status.st_size > LARGEST:
            return whole(f"the file has {status.st_size:,} octets; a case has at most {LARGEST:,}")
        with path.open("rb") as stream:
            data = stream.read(LARGEST + 1)
    except OSError as error:
        return whole(f"cannot be read: {error.strerror or error}")
    return decode(data, file)


def decode(data: bytes, file: str) -> Source | Problem:
    """*data* as the text of *file*, or what is wrong with it."""

    def whole(message: str, hint: str = "") -> Problem:
        return Problem(file, 0, 0, message, hint=hint)

    if len(data) > LARGEST:
        return whole(f"the file has more than {LARGEST:,} octets, and no case is that large")
    for mark, name in ((b"\xef\xbb\xbf", "UTF-8"), (b"\xff\xfe", "UTF-16"), (b"\xfe\xff", "UTF-16")):
        if data.startswith(mark):
            return whole(f"the file begins with a {name} byte order mark", "save it as UTF-8 without a BOM")
    try:
        text = data.decode("utf-8")
    except UnicodeDecodeError as error:
        head = data[: error.start].decode("utf-8", "replace")
        source, place = Source(file, data.decode("utf-8", "replace")), _position(head, len(head))
        if data.count(b"\0") or data[:4] in (b"\x7fELF", b"\x89PNG") or data.startswith(b"\x1f\x8b"):
            return whole("this is a binary file, not a case")
        return source.at(*place, f"the octet 0x{data[error.start]:02x} is not UTF-8", hint="save the file as UTF-8")
    if "\0" in text:
        line, column = _position(text, text.index("\0"))
        return whole(f"this is a binary file, not a case: there is a NUL in line {line}, column {column}")
    if not text.strip():
        return whole("the file is empty", "a case has at least title, covers and steps")
    source = Source(file, text)
    if found := _CONTROL.search(text):
        line, column = _position(text, found.start())
        source.lines[line - 1] = _CONTROL.sub("\ufffd", source.lines[line - 1])
        return source.at(line, column, f"the control character U+{ord(found[0]):04X} cannot stand in a case")
    if "\t" in text:
        line, column = _position(text, text.index("\t"))
        source.lines[line - 1] = source.lines[line - 1].replace("\t", " ")
        hint = "indent with spaces" if not source.lines[line - 1][: column - 1].strip() else "write a space"
        return source.at(line, column, "there is a tab here, and YAML does not indent with tabs", hint=hint)
    return source


# Scalars -------------------------------------------------------------------------------------------------------------
# Texts are as long as a file may be: no pattern may try one octet in two ways.
_INTEGER = re.compile(r"[-+]?(0|[1-9][0-9]*)\Z")
_HEX = re.compile(r"0x[0-9a-fA-F]+\Z")
_FLOAT = re.compile(r"[-+]?(0|[1-9][0-9]*)\.[0-9]+\Z")
_NUMBERS: tuple[tuple[re.Pattern[str], Callable[[str], int | float]], ...] = (
    (_INTEGER, int), (_HEX, functools.partial(int, base=16)), (_FLOAT, float),
)  # fmt: skip
#: What other readers of YAML take for a number of some kind, each with what it is.
_AMBIGUOUS = (
    (re.compile(r"[-+]?0[0-9]+(\.[0-9]*)?\Z"), "has a leading zero, which some read as octal"),
    (re.compile(r"[-+]?[0-9]+_[0-9_]*(\.[0-9_]*)?\Z"), "has an underscore, which some read as a number"),
    (re.compile(r"[-+]?[0-9]+(:[0-9]+)+(\.[0-9]*)?\Z"), "is a number to base 60 for some readers of YAML"),
    (re.compile(r"[-+]?0[oO][0-9]*\Z"), "is octal"),
    (re.compile(r"[-+]?0[bB][01_]*\Z"), "is binary"),
    (re.compile(r"[-+]?\.(inf|Inf|INF)\Z|\.(nan|NaN|NAN)\Z"), "is no finite number"),
    (re.compile(r"[-+]?[0-9]+(\.[0-9]*)?[eE][-+]?[0-9]+\Z"), "has an exponent"),
    (re.compile(r"[-+]?(\.[0-9]+|[0-9]+\.)\Z"), "lacks digits before or after its point"),
)
_CONSTANTS: dict[str, Any] = {"true": True, "false": False, "null": None}


def plain_scalar(text: str) -> tuple[Any, str | None]:
    """The value of *text* standing without quotes, and what is wrong with it if something is."""
    if text[:1] not in "0123456789.+-":
        if text in _CONSTANTS:
            return _CONSTANTS[text], None
        return text, "'~' is a name of nothing: write null" if text == "~" else None
    for pattern, read in _NUMBERS:
        if pattern.match(text):
            if len(text) > _LONGEST_NUMBER:
                return text, f"a number has at most {_LONGEST_NUMBER} digits"
            return read(text), None
    for pattern, what in _AMBIGUOUS:
        if pattern.match(text):
            return text, f"{text[:40]!r} {what}: write a plain decimal or 0x number, or put text in quotes"
    return text, None


# Parsing -------------------------------------------------------------------------------------------------------------
class _RefusedError(Exception):
    def __init__(self, problem: Problem) -> None:
        super().__init__(problem.message)
        self.problem = problem


_CASE = "a case is a mapping (title: …, covers: …, steps: …)"


def parse(source: Source, wanted: str = _CASE) -> tuple[Map | None, list[Problem]]:
    """The mapping that *source* holds, and the problems found. None if the text cannot be read as one.

    *wanted* says what it should have been.
    """
    problems: list[Problem] = []
    try:
        root = _build(source, problems)
    except _RefusedError as refused:
        return None, [*problems, refused.problem]
    except yaml.YAMLError as error:
        return None, [*problems, _syntax(source, error)]
    if not isinstance(root, Map):
        what = "a list" if isinstance(root, Seq) else "a single value"
        return None, [
            *problems,
            source.problem(root, f"{wanted}, not {what}"),
        ]
    return root, problems


_KINDS: dict[type, str] = {bool: "a boolean", int: "a number", float: "a number", type(None): "nothing"}


def _build(source: Source, problems: list[Problem]) -> Node:
    # An open collection is [node, the key that waits for its value]. Events come lazily, so that a refusal ends it.
    stack: list[tuple[Map | Seq, list[Scalar | None]]] = []
    root: Node | None = None
    documents = values = 0
    refuse = source.at
    events: Iterator[Any] = yaml.parse(source.text, Loader=yaml.CSafeLoader)
    for event in events:
        kind = type(event)
        if kind is yaml.MappingEndEvent or kind is yaml.SequenceEndEvent:
            stack.pop()
            continue
        line, column = event.start_mark.line + 1, event.start_mark.column + 1
        if kind is yaml.DocumentStartEvent:
            documents += 1
            if documents > 1:
                raise _RefusedError(refuse(line, column, "a second document begins here: a file holds one case", 3))
            if event.version or event.tags:
                raise _RefusedError(refuse(line, column, "a case needs no % directives", len(source.lines[line - 1])))
            continue
        if kind in (yaml.StreamStartEvent, yaml.StreamEndEvent, yaml.DocumentEndEvent):
            continue
        _refuse_indirection(source, event, line, column)
        values += 1
        if values > MOST_VALUES:
            raise _RefusedError(refuse(line, column, f"a case has at most {MOST_VALUES:,} keys and values"))
        if len(problems) >= MOST_PROBLEMS:
            raise _RefusedError(refuse(line, column, "so much is wrong before this that reading stops here"))
        top: Map | Seq | None = stack[-1][0] if stack else None
        waiting: list[Scalar | None] = stack[-1][1] if stack else [None]
        node: Node
        if kind is yaml.ScalarEvent:
            is_key = isinstance(top, Map) and waiting[0] is None
            scalar = _scalar(source, problems, event, line, column, is_key)
            if is_key:
                waiting[0] = scalar
                continue
            node = scalar
        else:
            if isinstance(top, Map) and waiting[0] is None:
                raise _RefusedError(
                    refuse(line, column, "a key is a name, not a list or a mapping", hint=_variable_hint(source, line))
                )
            if len(stack) >= DEEPEST:
                raise _RefusedError(refuse(line, column, f"nested more than {DEEPEST} deep"))
            node = Map({}, line, column) if kind is yaml.MappingStartEvent else Seq([], line, column)
        if top is None:
            root = node
        elif isinstance(top, Seq):
            top.items.append(node)
        else:
            key = waiting[0]
            waiting[0] = None
            assert key is not None
            _enter(source, problems, top, key, node)
        if not isinstance(node, Scalar):
            stack.append((node, [None]))
    if root is None:
        raise _RefusedError(Problem(source.file, 0, 0, "the file holds no case, only comments"))
    return root


def _refuse_indirection(source: Source, event: Any, line: int, column: int) -> None:
    """Raise _RefusedError for an alias, an anchor or a tag: nothing in a case stands for something elsewhere."""
    name = event.anchor
    if name is not None:
        what = f"aliases (*{name[:40]})" if isinstance(event, yaml.AliasEvent) else f"anchors (&{name[:40]})"
        hint = "name the common part under templates and use it"
        raise _RefusedError(source.at(line, column, f"{what} are not part of the format", len(name) + 1, hint))
    if event.tag is not None:
        message = f"tags ({_tag(event.tag)}) are not part of the format"
        raise _RefusedError(source.at(line, column, message, hint="leave the tag out"))


def _scalar(source: Source, problems: list[Problem], event: Any, line: int, column: int, is_key: bool) -> Scalar:
    text, end = event.value, event.end_mark
    one_line = end.line + 1 == line
    width = end.column + 1 - column if one_line else len(source.lines[line - 1].rstrip()) - column + 1
    node = Scalar(text, text, line, column, max(width, 1), 0)
    if event.style:  # quoted, or a block
        node.inset = 1 if event.style in "'\"" else 0
    elif not text:
        if not is_key:
            node.value = None
    else:
        node.value, wrong = plain_scalar(text)
        if wrong and not is_key:
            problems.append(source.problem(node, wrong))
            node.value = text
    if is_key and not isinstance(node.value, str):
        what = _KINDS[type(node.value)]
        problems.append(
            source.problem(node, f"a key is a name, and {text!r} is {what}", "put it in quotes if it is meant")
        )
        node.value = text
    return node


def _enter(source: Source, problems: list[Problem], top: Map, key: Scalar, node: Node) -> None:
    name = key.text
    if name == "<<":
        raise _RefusedError(
            source.problem(key, "merge keys (<<) are not part of the format", "use: NAME brings in a template")
        )
    if isinstance(node, Scalar) and node.value is None and not node.text:
        problems.append(source.problem(key, f"nothing stands after {name[:40]!r}", "write its value, or null for none"))
    if name in top.entries:
        first = top.entries[name][0]
        problems.append(source.problem(key, f"the key {name[:40]!r} is already there, in line {first.line}"))
    else:
        top.entries[name] = (key, node)


def _tag(tag: str) -> str:
    return tag.replace("tag:yaml.org,2002:", "!!")[:60]


def _variable_hint(source: Source, line: int) -> str:
    return 'put it in quotes: "${name}"' if "${" in source.lines[line - 1] else ""


#: libyaml's words, and ours.
_SYNTAX = (
    ("mapping values are not allowed", "a ': ' cannot stand here", "put a text that holds ': ' in quotes"),
    ("block sequence entries are not allowed", "a list cannot begin here", "put its '- ' on a line of its own"),
    ("cannot start any token", "this character cannot begin a value", "put the text in quotes"),
    ("unknown escape character", "this is no escape of double quotes", "use single quotes, where \\ is itself"),
    ("unexpected end of stream", "the text ends before this is closed", ""),
    ("',' or '}'", "here a ',' or '}' is missing", ""),
    ("',' or ']'", "here a ',' or ']' is missing", ""),
    ("'-' indicator", "this is neither an item of the list ('- …') nor indented as part of one", ""),
    ("could not find expected ':'", "a ':' is missing after the key", ""),
    ("expected <block end>", "this line is not indented like the others of its block", ""),
    ("did not find expected key", "here a key is expected, indented like the others of its mapping", ""),
    ("expected <document start>", "this stands after the end of the case", ""),
    ("node content", "a value is missing here", ""),
)


def _syntax(source: Source, error: yaml.YAMLError) -> Problem:
    mark = getattr(error, "problem_mark", None) or getattr(error, "context_mark", None)
    said = str(getattr(error, "problem", None) or error)
    message, hint = next(
        ((ours, hint) for theirs, ours, hint in _SYNTAX if theirs in said), (f"this is not YAML: {said}", "")
    )
    if mark is None:
        return Problem(source.file, 0, 0, message, hint=hint)
    line, column = min(mark.line + 1, len(source.lines)), mark.column + 1
    context = getattr(error, "context_mark", None)
    if context is not None and context.line + 1 < line:
        message += f" (in what begins in line {context.line + 1})"
    while line > 1 and not source.lines[line - 1].strip():  # the end of the text is no place to look at
        line -= 1
        column = len(source.lines[line - 1].rstrip()) + 1
    return source.at(line, column, message, hint=_variable_hint(source, line) or hint)
