"""``conform compare``."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import click

from conform.cli import options as shared
from conform.cli import reporting


@click.command("compare", short_help="hold runs beside each other: stacks, or one stack before and after")
@click.argument("runs", type=shared.PATH, nargs=-1, required=True, metavar="RUN RUN...")
@click.option("--all", "everything", is_flag=True, help="Show what agrees too.")
@click.option("--json", "as_json", metavar="FILE", help="Write all of it as JSON; - writes it instead of the text.")
@click.option("--html", "page", type=shared.PATH, metavar="FILE", help="Write a page that needs nothing else.")
@click.option("--markdown", "tables", type=shared.PATH, metavar="FILE", help="Write the tables of docs/stacks.md.")
def command(
    runs: tuple[Path, ...], everything: bool, as_json: str | None, page: Path | None, tables: Path | None
) -> int:
    """Compare runs (a run's directory, or its run.jsonl). No root.

    Runs of several stacks: where they differ and why; exits with 1 when a result of any is not as expected. Runs of
    one stack: what became of each trial since the first; exits with 1 when one that was as expected is not, or is gone.
    """
    if len(runs) < 2:
        raise click.UsageError("there is nothing to compare: name two runs or more")
    return tell(runs, everything, as_json, page, tables)


def tell(
    runs: Sequence[Path],
    everything: bool = False,
    as_json: str | None = None,
    page: Path | None = None,
    tables: Path | None = None,
) -> int:
    """Compare *runs* and tell of it in the ways that are asked for; the exit code."""
    from conform.run.compare import compare, read
    from conform.run.runfile import RunFileError

    try:
        found = compare([read(run) for run in runs], everything)
    except RunFileError as error:
        reporting.complain(str(error))
        return 2
    from conform.report import compare as report

    try:
        if as_json is not None:
            told = json.dumps(found.to_json(), indent=1, ensure_ascii=True) + "\n"
            if as_json == "-":
                click.echo(told, nl=False)
            else:
                Path(as_json).write_text(told)
        if page is not None:
            report.write_html(found, page)
        if tables is not None:
            report.write_markdown(found, tables)
    except OSError as error:
        reporting.complain(f"{error.filename}: {error.strerror}")
        return 2
    if as_json != "-":
        from rich.console import Console

        report.print_text(found, Console(highlight=False))
    return found.exit
