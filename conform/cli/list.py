"""``conform list``."""

from __future__ import annotations

from pathlib import Path

import click

from conform.cli import options as shared


@click.command("list", short_help="list the trials that cases give")
@shared.paths(required=False)
@shared.selecting
@shared.ip
@click.option("--cases", "only_cases", is_flag=True, help="Cases with their titles instead of trials.")
@click.option("--tags", "only_tags", is_flag=True, help="The tags, and how many cases have each.")
def command(
    paths: tuple[Path, ...],
    keyword: str | None,
    tags: tuple[str, ...],
    requirements: tuple[str, ...],
    levels: tuple[str, ...],
    ip: str,
    only_cases: bool,
    only_tags: bool,
) -> int:
    """List the trials that the cases in PATH give (all under cases/ when none is given)."""
    from conform.cli import reporting
    from conform.run.listing import listing
    from conform.run.select import Selection, SelectionError

    try:
        found = listing(paths, Selection(keyword, tags, requirements, levels), shared.versions(ip))
    except SelectionError as error:
        reporting.complain(str(error))
        return 2
    if found.problems:
        for problem in found.problems:
            reporting.complain(str(problem))
        return 2
    if not found.trials:
        reporting.complain("nothing is selected")
        return 5
    if only_tags:
        for tag, count in sorted(found.tags.items()):
            click.echo(f"{tag}  {count}")
    elif only_cases:
        width = max(map(len, found.cases))
        for name, title in found.cases.items():
            click.echo(f"{name:<{width}}  {title}")
    else:
        for name in found.trials:
            click.echo(name)
    return 0
