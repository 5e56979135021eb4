"""``conform doctor``."""

from __future__ import annotations

import sys

import click


@click.command("doctor", short_help="what this machine can and cannot do, and how to mend it")
@click.option("--link", type=click.Choice(["auto", "tun", "veth"]), default="auto", help="Judge by this link.  [auto]")
def command(link: str) -> int:
    """Say what this machine can and cannot do, each lack with the command that mends it.

    Exits 0 where trials can be run, else 3.
    """
    from conform.run import preflight

    machine = preflight.examine(link)  # type: ignore[arg-type]
    width = max(len(finding.name) for finding in machine.findings)
    plain = not sys.stdout.isatty()
    for finding in machine.findings:
        mark = "ok " if finding.ok else "NO " if finding.needed else "-- "
        colour = "green" if finding.ok else "red" if finding.needed else "yellow"
        click.echo(f"{mark if plain else click.style(mark, fg=colour)} {finding.name:<{width}}  {finding.text}")
        if not finding.ok and finding.remedy:
            click.echo(f"    {'':<{width}}  to mend it: {finding.remedy}")
    if machine.usable:
        click.echo("\ntrials can be run here")
        return 0
    click.echo("\nno trial can be run here until what is marked NO is mended")
    return 3
