"""``conform expect``."""

from __future__ import annotations

import difflib
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import click

from conform.cli import options as shared
from conform.cli import reporting

if TYPE_CHECKING:
    from conform.run.expectations import Deviation
    from conform.run.update import Update

#: Of the entries that wait for a reason so many are told.
_SHOWN = 10


@click.group("expect", short_help="keep the list of a stack's known deviations")
def command() -> None:
    """Keep the list of a stack's known deviations: the trials that are expected to fail, and why each does."""


@command.command("update", short_help="bring the list up to date with a run")
@click.argument("run", type=shared.PATH)
@click.option("--file", "file", type=shared.PATH, metavar="FILE", help="The list.  [expectations/STACK.yaml]")
@click.option("--reason", metavar="TEXT", help="The reason of every entry that has none.  [asked for on a terminal]")
@click.option("--dry-run", is_flag=True, help="Show what would change, and write nothing.")
def update(run: Path, file: Path | None, reason: str | None, dry_run: bool) -> int:
    """Write what RUN (a run's directory, or its run.jsonl) found to be unexpected into the list of deviations.

    Failures get entries, entries whose trials all pass are taken out, and nothing else is touched. An entry without a
    reason is refused by `conform run` and `conform check` until somebody writes one. What errored, or went now so and
    now so, is never expected. Exits with 0, or with 1 when something is left for a person to do.
    """
    from conform.run import expectations, update
    from conform.run.runfile import Reader, RunFileError

    try:
        reader = Reader(run)
        settings, stack = reader.header.get("settings") or {}, (reader.header.get("stack") or {}).get("name", "")
        lists = update.lists(settings.get("paths") or (), stack)
        if file is None:
            if len(lists) != 1:
                named = ", ".join(map(str, lists)) or "the cases of that run are not here"
                raise click.UsageError(f"which list is meant? Say it with --file ({named})")
            file = lists[0]
        file = file.resolve()
        beside = [path for path in lists if path != file and path.is_file()]
        others = expectations.load(beside if file in lists else [])  # a file of one's own stands for all of them
        before = update.read(file)
        done = update.update(
            before or update.heading(stack),
            expectations.named(file),
            update.survey(reader),
            universe=update.trials_of(file, settings.get("paths") or ()),
            gate=settings.get("gate", "all"),
            others=others,
            ask=_asker(reason),
        )
    except (RunFileError, update.UpdateError) as error:
        reporting.complain(str(error))
        return 2
    except (OSError, UnicodeDecodeError) as error:
        reporting.complain(f"{file}: {error}")
        return 2
    if isinstance(done, list):
        for problem in done:
            reporting.complain(str(problem))
        return 2
    if dry_run:
        names = str(expectations.named(file)), f"{expectations.named(file)} (as it would be)"
        click.echo("".join(difflib.unified_diff(before.splitlines(True), done.text.splitlines(True), *names)), nl=False)
    elif done.text != done.before:
        try:
            file.parent.mkdir(exist_ok=True)
            file.write_bytes(done.text.encode())
        except OSError as error:
            reporting.complain(f"{file}: {error.strerror}")
            return 2
    for line in _words(done, dry_run):
        click.echo(line)
    return done.exit


def _is_terminal() -> bool:
    return sys.stdin.isatty()


def _asker(reason: str | None) -> Callable[[Deviation], str]:
    """Who is asked for an entry's reason."""
    if reason is not None or not _is_terminal():
        return lambda entry: reason or ""

    def ask(entry: Deviation) -> str:
        click.echo(f"\n{chr(10).join(entry.trials)}\n  {entry.message}\n  {entry.packets}\n  {entry.rfc}")
        told = click.prompt("Why does the stack do that? (Enter leaves it open)", default="", show_default=False)
        return str(told)

    return ask


def _words(done: Update, dry_run: bool) -> list[str]:
    """What was done, and what is left to do."""
    from conform.report.text import clean

    out = []
    will = "would be " * dry_run
    for entry, many in done.added:
        out.append(f"{will}added: {', '.join(entry.trials)}: {entry.message} ({many} trial{'s' * (many != 1)})")
    for entry in done.removed:
        out.append(f"{will}removed: {entry.path}:{entry.line}: no trial fails as it says any more ({entry.reason})")
    for entry, gone in done.narrowed:
        out.append(f"{will}narrowed: {entry.path}:{entry.line}: without {', '.join(gone)}")
    for entry in done.filled:
        out.append(f"{will}given its reason: {entry.path}:{entry.line}")
    for trial, why in done.left:
        out.append(f"left: {trial}: {why}; that is never written as expected")
    if done.text == done.before:
        out.append("nothing changes: the list says what the run found")
    for entry in done.waiting[:_SHOWN]:
        out.append(f"{entry.path}:{entry.line}: this entry waits for its reason")
    if len(done.waiting) > _SHOWN:
        out.append(f"and {len(done.waiting) - _SHOWN} more wait for theirs")
    if done.waiting:
        out.append("conform run refuses the list until each has one: why does the stack do that?")
    return [clean(line) for line in out]
