"""``conform schema``."""

from __future__ import annotations

import json

import click


@click.command("schema", short_help="print the JSON Schema of the case format")
def command() -> int:
    """Print the JSON Schema of the case format, for editors that complete and check as one types."""
    from conform.case import schema

    click.echo(json.dumps(schema.schema(), indent=2, ensure_ascii=False))
    return 0
