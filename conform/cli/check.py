"""``conform check``."""

from __future__ import annotations

from pathlib import Path

import click

from conform.cli import options as shared


@click.command("check", short_help="validate cases without running them")
@shared.paths(required=True)
def command(paths: tuple[Path, ...]) -> int:
    """Validate the cases in PATH, and the lists of known deviations beside them, without running anything.

    All problems of all files are shown in one go. Exits 0 where there is none, else 2.
    """
    from conform.run.check import check

    checked = check(paths)
    for problem in checked.problems:
        click.echo(str(problem), err=True)
    if checked.problems:
        count = len(checked.problems)
        click.echo(f"{count} problem{'s' * (count != 1)}", err=True)
        return 2
    text = f"{checked.cases} case{'s' * (checked.cases != 1)}, {checked.trials} trials"
    if checked.deviations:
        text += f", {checked.deviations} known deviation{'s' * (checked.deviations != 1)}"
    click.echo(f"{text}: sound")
    return 0
