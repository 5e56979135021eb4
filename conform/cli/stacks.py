"""``conform stacks``: the stacks that ship, whether each can be run here, and how to build what it needs."""

from __future__ import annotations

import sys

import click


@click.group("stacks", short_help="the stacks that ship: what is here, what is missing", invoke_without_command=True)
@click.pass_context
def command(context: click.Context) -> int:
    """List the stacks that ship: which can be run here, and what installs or builds the others."""
    if context.invoked_subcommand is not None:
        return 0
    from conform.stacks import shelf

    plain = not sys.stdout.isatty()
    for found in shelf.look():
        mark = "ok " if found.ready else "-- "
        click.echo(f"{mark if plain else click.style(mark, fg='green' if found.ready else 'yellow')} {found.line}")
        for remedy in found.remedies:
            click.echo(f"      {remedy}")
    return 0


@command.command("build", short_help="build what a stack needs")
@click.argument("names", nargs=-1, required=True, metavar="NAME...")
@click.option("--force", is_flag=True, help="Build anew what is built already.")
def build(names: tuple[str, ...], force: bool) -> int:
    """Build what each stack NAME (or description's file) needs. What is built already is left as it is.

    Exits 0, 2 for a stack that does not exist, 3 where a build failed.
    """
    from conform.stacks import builds
    from conform.stacks.description import DescriptionError, load

    code = 0
    for name in names:
        try:
            description = load(name)
        except DescriptionError as error:
            click.echo(str(error), err=True)
            return 2
        if description.build is None:
            click.echo(f"{name}: there is nothing to build")
            continue
        if builds.built(description) and not force:
            click.echo(f"{name}: built already, in {builds.directory(description)}")
            continue
        try:
            place = builds.build(description, click.echo, force=force)
        except builds.BuildError as error:
            click.echo(f"{name}: {error}", err=True)
            code = 3
        else:
            click.echo(f"{name}: built, in {place}")
    return code
