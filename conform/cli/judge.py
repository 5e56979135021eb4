"""``conform judge``."""

from __future__ import annotations

from pathlib import Path

import click

from conform.cli import options as shared
from conform.cli import reporting
from conform.report import Reports


@click.command("judge", short_help="derive the verdicts and reports of a saved run again")
@click.argument("run", type=shared.PATH)
@click.option("--out", type=shared.PATH, metavar="DIR", help="Where to write the reports.  [beside the run file]")
def command(run: Path, out: Path | None) -> int:
    """Derive the verdicts of RUN (a run's directory, or its run.jsonl) again, and write its reports again. No root.

    Exits as the run should have, or 3 when a line does not hold the verdict that follows from it.
    """
    from conform.run.judging import Judged, derive
    from conform.run.runfile import Reader, RunFileError

    judged = Judged()
    try:
        reader = Reader(run)
        own = reader.path.parent
        reports = Reports(out or own, reader.header, own)
        for line in derive(reader, judged):
            reports.trial(line)
        reports.finish(reader.end)
    except RunFileError as error:
        reporting.complain(str(error))
        return 2
    except OSError as error:
        reporting.complain(f"{error.filename}: {error.strerror}")
        return 2
    for text in [*judged.differ, *reports.failed]:
        reporting.complain(text)
    counts = ", ".join(f"{number} {result}" for result, number in judged.counts.most_common())
    click.echo(f"{judged.counts.total()} trials judged again: {counts}")
    if judged.unfinished:
        click.echo(f"{len(judged.unfinished)} planned trials have no line: the run was ended early")
    if judged.differ:
        reporting.complain(f"{len(judged.differ)} lines do not hold the verdict that follows from them")
    return 3 if reports.failed else judged.exit
