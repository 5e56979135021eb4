"""``conform expect``."""

from __future__ import annotations

import contextlib
import difflib
import errno
import os
import stat
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
@click.option("--file", "file", type=shared.PATH, metavar="FILE", help="The list.  [the one that RUN was judged by]")
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
        own = [Path(path) for path in settings.get("expect") or ()]
        lists = own or update.lists(settings.get("paths") or (), stack)
        if file is None:
            if len(lists) != 1:
                named = ", ".join(map(str, lists)) or "the cases of that run are not here"
                raise click.UsageError(f"which list is meant? Say it with --file ({named})")
            file = lists[0]
            if own and not file.is_file():
                raise click.UsageError(f"the list that the run was judged by is not here: say it with --file ({file})")
        file = file.parent.resolve() / file.name  # beside its cases, even where it is a link
        if file.exists() and not file.is_file() and not file.is_dir():
            raise click.UsageError(f"{file} is no file")
        known = [path for path in lists if path.is_file()]
        at = next((n for n, path in enumerate(known) if path.resolve() == file.resolve()), None)
        if at is None:  # a file of one's own stands for all of them
            known, at = [], 0
        before = update.read(file)
        planned = reader.header.get("planned") or ()
        seen = update.survey(reader)
        done = update.update(
            before or update.heading(stack),
            expectations.named(file),
            seen,
            universe=update.trials_of(file, settings.get("paths") or (), planned),
            gate=settings.get("gate", "all"),
            ahead=expectations.load(known[:at]),
            others=expectations.load(known[at + 1 :]),
            stale=reader.header.get("stale") or (),
            ask=_asker(reason, dry_run),
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
    done.unfinished = update.unfinished(planned, seen)
    if dry_run:
        names = str(expectations.named(file)), f"{expectations.named(file)} (as it would be)"
        click.echo("".join(difflib.unified_diff(before.splitlines(True), done.text.splitlines(True), *names)), nl=False)
    elif done.text != done.before:
        try:
            _write(file.resolve(), done.text)  # a link stays one
        except OSError as error:
            reporting.complain(f"{file}: {error.strerror}")
            return 2
    for line in _words(done, dry_run):
        click.echo(line)
    return done.exit


def _write(file: Path, text: str) -> None:
    """Put *text* in the list's place, whole or not at all; it keeps its owner and mode. Raises OSError."""
    from conform.report.files import replacing

    file.parent.mkdir(exist_ok=True)
    before = file.stat() if file.exists() else None
    if before is not None and not os.access(file, os.W_OK):
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))
    with replacing(file) as new:
        if before is not None:
            with contextlib.suppress(PermissionError):
                os.fchown(new.fileno(), before.st_uid, before.st_gid)
            os.fchmod(new.fileno(), stat.S_IMODE(before.st_mode))
        new.write(text.encode())


def _is_terminal() -> bool:
    return sys.stdin.isatty()


def _asker(reason: str | None, dry_run: bool) -> Callable[[Deviation], str]:
    """Who is asked for an entry's reason. Ctrl-C ends the asking: what was answered is kept, the others stay open."""
    if reason is not None or dry_run or not _is_terminal():
        return lambda entry: reason or ""
    from conform.report.text import clean

    asking = True

    def ask(entry: Deviation) -> str:
        nonlocal asking
        if not asking:
            return ""
        words = [*entry.trials, f"  {entry.message}", f"  {entry.packets}", f"  {entry.rfc}"]
        click.echo("\n" + "\n".join(clean(each) for each in words))
        try:
            told = click.prompt("Why does the stack do that? (Enter leaves it open)", default="", show_default=False)
        except click.Abort:
            click.echo()
            asking, told = False, ""
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
    for entry in done.stale:
        out.append(f"{will}removed: {entry.path}:{entry.line}: no trial matches {', '.join(entry.trials)}")
    for entry, gone in done.narrowed:
        out.append(f"{will}narrowed: {entry.path}:{entry.line}: without {', '.join(gone)}")
    for entry in done.filled:
        out.append(f"{will}given its reason: {entry.path}:{entry.line}")
    for trial, why in done.left:
        out.append(f"left: {trial}: {why}")
    if done.unfinished:
        trials = "1 planned trial has" if done.unfinished == 1 else f"{done.unfinished} planned trials have"
        out.append(f"left: {trials} no verdict in this run: conform run --lf runs what is missing")
    if done.text == done.before:
        left = done.left or done.unfinished
        out.append("nothing changes" if left else "nothing changes: the list says what the run found")
    for entry in done.waiting[:_SHOWN]:
        out.append(f"{entry.path}:{entry.line}: this entry waits for its reason")
    if len(done.waiting) > _SHOWN:
        out.append(f"and {len(done.waiting) - _SHOWN} more wait for theirs")
    if done.waiting:
        out.append("conform run refuses the list until each has one: why does the stack do that?")
    return [clean(line) for line in out]
