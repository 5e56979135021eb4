"""``conform new``."""

from __future__ import annotations

from pathlib import Path

import click

from conform.cli import reporting

_TEMPLATE = """\
# A case says what a conforming stack does, step by step. docs/case-format.md has every key; `conform schema` makes
# editors complete and check them. Try it:  conform check {path}  and  conform run {path}
title: A segment beyond the window is answered with an ACK, and changes nothing

# Why the case exists: what a reader of its failure needs to know.
why: >-
  An unacceptable segment is dropped, and answered with an acknowledgment that says what is awaited.

# The ids of the requirements that a failure would break: `conform list --req ID` shows who covers one.
covers: [{covers}]

# Words to select it by: conform run --tag WORD.
tags: [example]

# The state in which the steps begin; a recipe leads there. Any of RFC 9293's eleven.
given: ESTABLISHED

# Numbers are the stack's variables, as RFC 9293 has them: SND.NXT, RCV.NXT, RCV.WND, ...
steps:
  # The tester sends. What is not said comes from the connection: ports, numbers, window.
  - send: {{flags: PA, seq: RCV.NXT + RCV.WND, payload: x}}

  # The stack's next segment. What is not said is not looked at; anything else that came would be a failure.
  - expect: {{flags: A, seq: SND.NXT, ack: RCV.NXT}}

  # A state, read out of the stack.
  - state: ESTABLISHED

  # A call made by the application in the stack. It must succeed unless the case says otherwise.
  - call: {{do: send, payload: hello}}
  - expect: {{flags: A, seq: SND.NXT, payload: hello}}

# Silence needs no words: after the last step nothing more may come, and the stack must still be alive.
"""
_COVERS = "9293-3.10.7.4-seq-estab-future-data-ack"


@click.command("new", short_help="write a commented case to start from")
@click.argument("name")
@click.option("--force", is_flag=True, help="Replace a file that is there.")
def command(name: str, force: bool) -> int:
    """Write a commented case to NAME: a path, or an id below cases/ (close/my-case)."""
    path = Path(name)
    if path.suffix != ".yaml":
        path = Path("cases", f"{name}.yaml")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("w" if force else "x") as file:
            file.write(_TEMPLATE.format(path=path, covers=_COVERS))
    except FileExistsError:
        reporting.complain(f"{path} is there already; --force replaces it")
        return 2
    except OSError as error:
        reporting.complain(f"{path}: {error.strerror}")
        return 2
    click.echo(f"{path} written; try:  conform run {path}")
    return 0
