"""``conform agent-check``."""

from __future__ import annotations

from typing import Any

import click

from conform.cli import options as shared
from conform.cli import reporting


@click.command(
    "agent-check",
    short_help="check that a program speaks the agent protocol",
    context_settings={"allow_interspersed_args": False},
)
@click.argument("command", nargs=-1, required=True, type=click.UNPROCESSED, metavar="COMMAND...")
@shared.ip
@click.option("--stack", "stacks", multiple=True, metavar="ADDRESS", help="The stack's.  [127.0.0.1 and ::1]")
@click.option("--tester", "testers", multiple=True, metavar="ADDRESS", help="The tester's.  [as the stack's]")
@click.option("--interface", metavar="NAME", help="The device that hello tells of.")
@click.option("--mtu", type=click.IntRange(68, 65535), help="Its MTU, for hello.")
@click.option(
    "--set", "settings", multiple=True, metavar="NAME=VALUE", help="A setting to try: does a hello give it back?"
)
@click.option(
    "--within", type=click.FloatRange(0.1, 600), default=30.0, help="Seconds until hello is replied to.  [30]"
)
def command(
    command: tuple[str, ...],
    ip: str,
    stacks: tuple[str, ...],
    testers: tuple[str, ...],
    interface: str | None,
    mtu: int | None,
    settings: tuple[str, ...],
    within: float,
) -> int:
    """Start COMMAND, an agent, and check that it speaks docs/agent-protocol.md on its standard input and output.

    The stack talks to itself in it: calls that need a peer are checked where the stack reaches its own address. Exits
    with 0 where every check that could be made is ok, 1 where one failed, 2 where COMMAND cannot be started.
    """
    from conform.stacks import agentcheck

    link: dict[str, Any] = {} if interface is None else {"interface": interface}
    if mtu is not None:
        link["mtu"] = mtu
    try:
        setup = agentcheck.setup(command, shared.versions(ip), stacks, testers, link, within, settings)
        counts = dict.fromkeys(("ok", "failed", "not checked"), 0)
        for finding in agentcheck.check(setup):
            reporting.say(str(finding))
            counts[finding.verdict] += 1
    except (agentcheck.StartError, ValueError) as error:
        reporting.complain(str(error))
        return 2
    reporting.say(f"\n{counts['ok']} ok, {counts['failed']} failed, {counts['not checked']} not checked")
    return 1 if counts["failed"] else 0
