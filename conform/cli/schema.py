"""``conform schema``."""

from __future__ import annotations

import json

import click


@click.command("schema", short_help="print the JSON Schema of the case format")
@click.argument("what", type=click.Choice(["case", "expectations", "stack"]), default="case")
def command(what: str) -> int:
    """Print the JSON Schema of the case format, for editors that complete and check as one types.

    With the word expectations, that of a list of known deviations; with stack, that of a stack's description.
    """
    if what == "expectations":
        from conform.run.expectations import schema
    elif what == "stack":
        from conform.stacks.description import schema
    else:
        from conform.case.schema import schema
    click.echo(json.dumps(schema(), indent=2, ensure_ascii=False))
    return 0
