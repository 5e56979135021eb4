"""What ``conform compare`` found (``conform.run.compare``), for the terminal, as a page, and as a document's tables."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from conform.report.text import clean, duration_words, to_ascii
from conform.run.compare import ABSENT, CHANGES, MISSING, RESULTS, STALE, Cell, Change, Comparison, Row, Run
from conform.run.fold import fold

if TYPE_CHECKING:
    from rich.console import Console

_HERE = Path(__file__).parent
#: A result in a column.
WORDS = {
    "fail": "FAIL", "unexpected-pass": "PASSES", "error": "ERROR", MISSING: "MISSING", STALE: "STALE",
    "flaky": "FLAKY",
    "inconclusive": "UNCLEAR", "expected-failure": "known", "not-applicable": "n/a", "pass": "pass", ABSENT: "-",
}  # fmt: skip
_STYLES = {
    "fail": "bold red", "unexpected-pass": "bold red", "error": "bold red", MISSING: "bold red", STALE: "bold red",
    "flaky": "yellow",
    "inconclusive": "yellow", "expected-failure": "magenta", "not-applicable": "dim", "pass": "green", ABSENT: "dim",
}  # fmt: skip
#: How the changes between runs of one stack are headed, in their order.
TITLES = {
    "regression": "Regressions: expected, and no longer",
    "missing": "Missing: planned, and without a verdict",
    "removed": "Removed: there before, and not planned any more",
    "stale": "Stale: entries of the lists of deviations that match no trial, and were not told of before",
    "fixed": "Fixed: unexpected, and no longer",
    "changed": "Changed: another result or another reason, and as expected as before",
    "new": "New",
    "tidied": "Tidied: entries of the lists of deviations that are stale no more",
}
_WIDEST = 70
_MOST_SLOW = 20
_MOST_STALE = 10


def word(cell: Cell) -> str:
    """A cell as one word. A failure that the gate does not ask for is in small letters."""
    return "fail" if cell.result == "fail" and cell.expected else WORDS.get(cell.result, clean(cell.result))


def why(cell: Cell) -> str:
    """In one line why a cell is what it is; nothing of a pass."""
    if cell.result in ("pass", STALE, ABSENT):
        return ""
    broken = ": ".join(part for part in (cell.level or "", ", ".join(cell.requirements)) if part)
    told = cell.reason + (f" ({broken})" if broken else "") + (f" at {cell.step}" if cell.step else "")
    if cell.known and cell.result in ("expected-failure", "unexpected-pass"):
        told += f"; known: {cell.known[0]}"
    elif cell.known and cell.result == "fail":
        told += "; not as its known deviation fails"
    return clean(told)


def reasons(runs: Sequence[Run], cells: Sequence[Cell]) -> list[tuple[str, str]]:
    """Who says what of a row: labels, and their common reason."""
    found: dict[str, list[str]] = {}
    for run, cell in zip(runs, cells, strict=True):
        told = why(cell)
        if told:
            found.setdefault(told, []).append(run.label)
    return [(", ".join(labels), told) for told, labels in found.items()]


def short(case: str, glob: str) -> str:
    """A glob without its case: ``0.ESTABLISHED.*``."""
    return glob[len(case) + 1 :] if glob.lower().startswith(case.lower() + ".") else glob


def outcome(found: Comparison) -> str:
    """What the exit code says, in words."""
    if found.kind == "stacks":
        many = sum(run.unexpected for run in found.runs)
        told = f"{many} result{'s are' if many > 1 else ' is'} not as expected" if many else "nothing is unexpected"
        stale = sum(len(run.stale) for run in found.runs)
        if stale:
            told += f", of which {_entries(stale)} that {'matches' if stale == 1 else 'match'} no trial"
    else:
        counts: Counter[str] = Counter()
        for change in found.changes:
            counts[change.what] += change.count
        names = {"regression": f"regression{'s' * (counts['regression'] != 1)}"}
        worse = [f"{counts[what]} {names.get(what, what)}" for what, bad in CHANGES.items() if bad and counts[what]]
        told = ", ".join(worse) if worse else "no regression" if found.changes else "nothing differs"
    return f"{told} (exit {found.exit})"


def _entries(number: int) -> str:
    return f"{number} {'entry' if number == 1 else 'entries'} of the lists of deviations"


def headline(found: Comparison) -> str:
    """What was compared."""
    if found.kind == "stacks":
        many = sum(len(row.trials) for row in found.rows if row.differs)
        return f"{len(found.runs)} stacks, {found.trials} trials: of {many} they differ"
    many = len({trial for change in found.changes for trial in change.trials})
    return f"{len(found.runs)} runs of {found.runs[0].stack}, {found.trials} trials: {many} changed"


def _setting(value: Any) -> str:
    """A setting of a run in a few words."""
    if isinstance(value, dict):
        return ", ".join(f"{key} {_setting(each)}" for key, each in value.items()) or "all"
    if isinstance(value, list):
        return " ".join(map(str, value)) or "none"
    return "?" if value is None else str(value)


def notes(found: Comparison) -> list[str]:
    """What a reader has to know before the rest."""
    labels = [run.label for run in found.runs]
    out = []
    for name, values in found.settings.items():
        who: dict[str, list[str]] = {}
        for label, value in zip(labels, values, strict=True):
            who.setdefault(_setting(value), []).append(label)
        told = "; ".join(f"{value} in {', '.join(whose)}" for value, whose in who.items())
        out.append(f"the runs' {name} differs: {told}")
        if name == "gate" and found.kind == "runs":
            out.append("what became of a trial is judged by the later run's gate in both")
    for label, number in zip(labels, found.entries, strict=False):
        if number:
            trials = f"{number} trial{'s' * (number != 1)}"
            out.append(f"the lists of deviations differ: {trials} of {label} have another entry than in {labels[0]}")
    if found.kind == "stacks":
        for run in found.runs:
            out += [f"{run.label}: {words}" for words in run.stale[:_MOST_STALE]]
            if len(run.stale) > _MOST_STALE:
                out.append(f"{run.label}: {_entries(len(run.stale) - _MOST_STALE)} more match no trial")
    return out


# The terminal --------------------------------------------------------------------------------------------------------
Line = list[tuple[str, str]]


def print_text(found: Comparison, console: Console) -> None:
    """Print *found* to *console*, as plain as it wants it."""
    from rich.text import Text

    plain = (console.encoding or "ascii").lower().replace("-", "") not in ("utf8", "utf8sig", "utf16", "utf32")
    for line in lines(found):
        shown = Text()
        for text, style in line:
            shown.append(to_ascii(clean(text)) if plain else clean(text), style=style)
        console.print(shown, soft_wrap=True, highlight=False, markup=False, emoji=False)


def lines(found: Comparison) -> Iterator[Line]:
    """*found* as lines of pieces with their styles."""
    yield [(headline(found), "bold")]
    for told in notes(found):
        yield [(told, "yellow")]
    yield from _counts(found)
    if found.kind == "runs":
        yield from _all_changes(found)
    if found.rows and (found.kind == "stacks" or any(not row.differs for row in found.rows)):
        yield from _matrix(found)
    if found.kind == "stacks":
        for run, cases in zip(found.runs, found.alone, strict=True):
            yield from _globs(f"Only {run.label} fails", cases)
        yield from _globs("Every stack to which they apply fails: is it the case?", found.everywhere)
    yield [("", "")]
    yield [(outcome(found), "bold red" if found.exit else "bold green")]


def _counts(found: Comparison) -> Iterator[Line]:
    runs = found.runs
    used = [result for result in RESULTS if any(run.results[result] for run in runs)]
    columns: list[tuple[str, list[str]]] = [
        (WORDS[result], [str(run.results[result] or "") for run in runs]) for result in used
    ]
    for level in ("must", "should", "may"):
        if any(level in run.levels for run in runs):
            columns.append((f"{level.upper()} fail/pass", [_of_level(run, level) for run in runs]))
    if any(found.absent):
        columns.append(("not in it", [str(number or "") for number in found.absent]))
    wide = max(len(run.label) for run in runs)
    widths = [max(len(head), *map(len, values)) for head, values in columns]
    yield [(" " * wide, "")] + [(f"  {head:>{w}}", "dim") for (head, _), w in zip(columns, widths, strict=True)]
    for number, run in enumerate(runs):
        numbers = "".join(f"  {values[number]:>{w}}" for (_, values), w in zip(columns, widths, strict=True))
        where = "" if run.label == run.path else f"  {run.path}"
        yield [(f"{run.label:<{wide}}{numbers}", ""), (where, "dim")]


def _of_level(run: Run, level: str) -> str:
    counts = run.levels.get(level, Counter())
    return f"{counts['fail']}/{counts['pass']}"


def _matrix(found: Comparison) -> Iterator[Line]:
    runs = found.runs
    names = {number: [short(row.case, glob) for glob in row.globs] for number, row in enumerate(found.rows)}
    widest = max(max(map(len, each)) for each in names.values())
    wide = min(_WIDEST, max(widest + 2, *(len(row.case) for row in found.rows)))
    widths = [max(len(run.label), 7) for run in runs]
    yield [("", "")]
    heads = "".join(f"  {run.label:<{w}}" for run, w in zip(runs, widths, strict=True))
    yield [(f"{'':<{wide}}{heads}".rstrip(), "bold")]
    case = None
    for number, row in enumerate(found.rows):
        if row.case != case:
            case = row.case
            yield [(case, "bold")]
        *first, last = names[number]
        for name in first:
            yield [(f"  {name}", "")]
        told: Line = [(f"  {last}".ljust(wide), "")]
        for cell, w in zip(row.cells, widths, strict=True):
            told += [("  ", ""), (word(cell), _STYLES.get(cell.result, "")), (" " * (w - len(word(cell))), "")]
        yield told[:-1]
        for who, reason in reasons(runs, row.cells):
            yield [(f"      {who}: ", "dim"), (reason, "")]


def _globs(title: str, cases: dict[str, list[str]]) -> Iterator[Line]:
    if not cases:
        return
    yield [("", "")]
    yield [(title, "bold"), (f" ({len(cases)} case{'s' * (len(cases) != 1)})", "dim")]
    for globs in cases.values():
        for glob in globs:
            yield [(f"  {glob}", "")]


def _all_changes(found: Comparison) -> Iterator[Line]:
    several = len(found.runs) > 2
    for number, run in enumerate(found.runs[1:], 1):
        own = [change for change in found.changes if change.run == number]
        if several:
            yield [("", "")]
            yield [(f"{run.label} against {found.runs[0].label}", "bold underline")]
        for what, title in TITLES.items():
            these = [change for change in own if change.what == what]
            if not these:
                continue
            yield [("", "")]
            many = sum(change.count for change in these)
            unit = f" trial{'s' * (many != 1)}" if these[0].trials else ""
            yield [(title, "bold"), (f" ({many}{unit})", "dim")]
            for change in these:
                yield from _change(change)
        slow = [each for each in found.durations if each.run == number]
        if slow:
            yield [("", "")]
            yield [("Durations grossly different", "bold"), (f" ({len(slow)})", "dim")]
            for each in slow[:_MOST_SLOW]:
                before, after = duration_words(each.before), duration_words(each.after)
                yield [(f"  {each.trial}: {before}, now {after}", "")]
            if len(slow) > _MOST_SLOW:
                yield [(f"  and {len(slow) - _MOST_SLOW} more", "dim")]


def _change(change: Change) -> Iterator[Line]:
    *first, last = change.globs
    for glob in first:
        yield [(f"  {glob}", "")]
    if not change.trials:
        yield [(f"  {last}", "")]
        return
    before, after = change.before, change.after
    yield [
        (f"  {last}:  ", ""), (word(before), _STYLES.get(before.result, "")), (", now ", "dim"),
        (word(after), _STYLES.get(after.result, "")),
    ]  # fmt: skip
    if why(before) and before.result != MISSING:
        yield [("      was: ", "dim"), (why(before), "")]
    if why(after):
        yield [("      now: ", "dim"), (why(after), "")]


# The page ------------------------------------------------------------------------------------------------------------
def write_html(found: Comparison, path: Path) -> None:
    """Write *found* to *path* as one page that needs nothing else. Raises OSError."""
    from jinja2 import Environment, FileSystemLoader

    from conform.report.html import hashed

    environment = Environment(
        loader=FileSystemLoader(_HERE), autoescape=True, trim_blocks=True, lstrip_blocks=True, auto_reload=False
    )
    environment.filters["clean"] = clean
    style = (_HERE / "html" / "style.css").read_text("utf-8") + (_HERE / "compare.css").read_text("utf-8")
    changes = [
        (run, [(title, what, [c for c in found.changes if (c.run, c.what) == (number, what)])
               for what, title in TITLES.items()])
        for number, run in enumerate(found.runs[1:], 1)
    ]  # fmt: skip
    page = environment.get_template("compare.html.j2").render(
        found=found, headline=headline(found), outcome="; ".join([outcome(found), *notes(found)]),
        style=style, style_hash=hashed(style),
        cases=_by_case(found.rows), changes=changes, word=word, why=why, reasons=reasons, short=short,
        results=[result for result in RESULTS if any(run.results[result] for run in found.runs)], words=WORDS,
        levels=[level for level in ("must", "should", "may") if any(level in run.levels for run in found.runs)],
        of_level=_of_level, duration=duration_words, changed=any(found.changes),
    )  # fmt: skip
    path.write_bytes(page.encode("utf-8", "replace"))


def _by_case(rows: Iterable[Row]) -> list[tuple[str, list[Row]]]:
    cases: dict[str, list[Row]] = {}
    for row in rows:
        cases.setdefault(row.case, []).append(row)
    return list(cases.items())


# The document's tables -----------------------------------------------------------------------------------------------
def write_markdown(found: Comparison, path: Path) -> None:
    """Write the tables of docs/stacks.md to *path*. Raises OSError."""
    path.write_text(markdown(found), encoding="utf-8")


def markdown(found: Comparison) -> str:
    """*found* as tables: topics and known deviations, each beside the stacks. No time, no place, no duration is in
    it, so that what changes in it has changed in a stack or in a case."""
    out = ["<!-- written by conform compare --markdown; not to be edited -->", ""]
    out += [f"- **{_cell(run.label)}**: {_cell(run.title)}" for run in found.runs]
    out += ["", "Trials that pass / deviate / do not apply; what has no verdict stands behind `?`.", ""]
    topics: dict[str, list[Counter[str]]] = {}
    trials = sorted({trial for run in found.runs for trial in run.cells})
    for trial in trials:
        topic = trial.rpartition("/")[0] or "cases"
        counts = topics.setdefault(topic, [Counter() for _ in found.runs])
        for count, run in zip(counts, found.runs, strict=True):
            count[run.cell(trial).verdict] += 1
    labels = [_cell(run.label) for run in found.runs]
    out += _table(["topic", *labels], [[f"`{_cell(t)}`", *map(_numbers, topics[t])] for t in sorted(topics)])
    total = [sum((counts[n] for counts in topics.values()), Counter()) for n in range(len(found.runs))]
    out.append("| **all** | " + " | ".join(f"**{_numbers(each)}**" for each in total) + " |")
    out += ["", "## Known deviations", ""]
    rows = _deviations(found, trials)
    out += _table(["trials", "what the stack does", "RFC", *labels], rows) if rows else ["None."]
    left = _unlisted(found)
    if left:
        out += ["", "## Failures that no list explains", ""]
        out += _table(["trials", "what came", *labels], left)
    return "\n".join(out) + "\n"


def _table(head: list[str], rows: list[list[str]]) -> list[str]:
    out = ["| " + " | ".join(head) + " |", "|" + "---|" * len(head)]
    return out + ["| " + " | ".join(row) + " |" for row in rows]


def _cell(text: object) -> str:
    """*text* as a table of Markdown can hold it: no markup, one line."""
    told = clean(text).replace("\\", "\\\\").replace("|", "\\|").replace("<", "&lt;")
    return told.replace("*", "\\*").replace("_", "\\_").replace("[", "\\[").replace("`", "\\`")


def _code(globs: Iterable[str]) -> str:
    return "<br>".join(f"`{clean(glob).replace('|', '/').replace('`', '')}`" for glob in globs)


def _numbers(counts: Counter[str]) -> str:
    rest = sum(number for name, number in counts.items() if name not in ("pass", "fail", "not-applicable", ABSENT))
    told = f"{counts['pass']} / {counts['fail']} / {counts['not-applicable']}"
    return f"{told} ?{rest}" if rest else told


def _status(cells: Iterable[Cell]) -> str:
    """What a stack does in the trials of a row."""
    counts = Counter(cell.verdict for cell in cells if cell.result != ABSENT)
    total = counts.total()
    if not total:
        return "–"
    if counts["fail"]:
        return "deviates" if counts["fail"] == total - counts["not-applicable"] else f"in {counts['fail']} of {total}"
    if counts["not-applicable"] == total:
        return "n/a"
    return "as the RFC" if counts["pass"] + counts["not-applicable"] == total else "?"


def _deviations(found: Comparison, trials: Sequence[str]) -> list[list[str]]:
    """A row for each set of trials that entries of the lists cover; entries with the same trials share it."""
    covered: dict[tuple[str, str], dict[str, None]] = {}
    whose: dict[tuple[str, str], dict[str, None]] = {}
    for trial in trials:
        for run in found.runs:
            cell = run.cell(trial)
            if cell.result == "expected-failure" and cell.known:
                covered.setdefault(cell.known, {})[trial] = None
                whose.setdefault(cell.known, {})[run.label] = None
    sets: dict[tuple[str, ...], list[tuple[str, str]]] = {}
    for known, members in covered.items():
        sets.setdefault(tuple(members), []).append(known)
    out = []
    for meant, entries in sorted(sets.items()):
        said = [
            _cell(known[0]) if len(entries) == 1 else f"{_cell(', '.join(whose[known]))}: {_cell(known[0])}"
            for known in entries
        ]
        rfcs = dict.fromkeys(_cell(rfc) for _, rfc in entries)
        states = [_status(run.cell(trial) for trial in meant) for run in found.runs]
        out.append([_code(fold(meant, trials)), "<br>".join(said), "<br>".join(rfcs), *states])
    return out


def _unlisted(found: Comparison) -> list[list[str]]:
    groups: dict[tuple[str, str], list[str]] = {}
    universe = sorted({trial for run in found.runs for trial in run.cells})
    for trial in universe:
        ways = {run.cell(trial).words for run in found.runs if run.cell(trial).result == "fail"}
        for words in sorted(ways):
            groups.setdefault((trial.partition(".")[0], words), []).append(trial)
    out = []
    for (_, words), members in sorted(groups.items()):
        cells = []
        for run in found.runs:
            here = [run.cell(trial) for trial in members]
            mine = [cell for cell in here if cell.verdict != "fail" or cell.words == words]
            cells.append(_status(mine) if mine else "otherwise")
        out.append([_code(fold(members, universe)), _cell(words), *cells])
    return out


__all__ = [
    "headline",
    "lines",
    "markdown",
    "notes",
    "outcome",
    "print_text",
    "reasons",
    "why",
    "word",
    "write_html",
    "write_markdown",
]
