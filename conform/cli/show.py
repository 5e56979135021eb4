"""``conform show``."""

from __future__ import annotations

import textwrap
from pathlib import Path

import click

from conform.cli import options as shared
from conform.cli import reporting


@click.command("show", short_help="show a case: its requirements, its steps, its packets")
@click.argument("case")
@click.option(
    "--in", "paths", multiple=True, type=shared.PATH, metavar="PATH", help="Where to look for an id.  [cases]"
)
@click.option("--row", help="Of a matrix, this row.  [the first]")
def command(case: str, paths: tuple[Path, ...], row: str | None) -> int:
    """Show a case, named by its file, its id or a trial's id: what it asserts, and its packets as a ladder."""
    from rich.console import Console

    from conform.report import text
    from conform.report.ladder import planned_ladder
    from conform.requirements import catalogue
    from conform.run.finding import NotFoundError, find
    from conform.run.plan import requirements

    try:
        found = find(case, row, paths or (Path("cases"),))
    except NotFoundError as error:
        reporting.complain(str(error))
        return 2
    model, document = found.row.case, found.row.document
    click.echo(click.style(model.title, bold=True))
    click.echo(f"{found.loaded.case_id}  {found.loaded.path}")
    if model.why:
        click.echo(textwrap.fill(model.why, 100, initial_indent="\n", subsequent_indent=""))
    click.echo("\nrequirements")
    known = catalogue()
    for name in requirements(document):
        entry = known.get(name)
        if entry is None:
            click.echo(f"  {name}")
            continue
        head = f"  {name} ({entry.level}, RFC {entry.rfc} section {entry.section}): "
        click.echo(textwrap.fill(head + entry.summary, 100, subsequent_indent="      "))
    given = model.given
    told = [f"given {given.state}", f"role {given.role}"]
    told += ["not accepted"] * (not given.accepted)
    told += [f"tags {', '.join(model.tags)}"] * bool(model.tags)
    told += [f"requires {', '.join(model.requires)}"] * bool(model.requires)
    told += [f"IPv{model.ip}" if model.ip != "both" else "IPv4 and IPv6"]
    click.echo("\n" + ", ".join(told))
    for name, value in {**model.settings, **model.sysctl}.items():
        click.echo(f"  {name} = {value}")
    if len(found.loaded.rows) > 1:
        rows = [each.id for each in found.loaded.rows]
        click.echo(textwrap.fill(f"rows: {', '.join(rows)}; this is {found.row.id}", 100, subsequent_indent="      "))
    click.echo()
    text.print_ladder(Console(highlight=False), planned_ladder(document))
    return 0
