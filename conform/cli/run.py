"""``conform run``."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from conform.cli import options as shared

if TYPE_CHECKING:
    from conform.run.command import Options, Ran


@click.command("run", short_help="run cases against a stack, and report")
@shared.paths(required=True)
@shared.selecting
@click.option("--lf", "last_failed", is_flag=True, help="Only the trials of the last run that were not as expected.")
@click.option(
    "--stack",
    "stacks",
    multiple=True,
    default=("linux",),
    metavar="NAME",
    help="The stack's name, or its description's file; several, and they are held side by side.  [linux]",
)
@click.option(
    "--expect",
    type=shared.PATH,
    multiple=True,
    metavar="FILE",
    help="The stack's known deviations.  [expectations/STACK.yaml beside the cases]",
)
@shared.ip
@click.option(
    "--link", type=click.Choice(["auto", "tun", "veth"]), default="auto", help="What carries the packets.  [auto]"
)
@click.option(
    "--agent",
    type=click.Choice(["auto", "inline", "process"]),
    default="auto",
    help="Who makes the socket calls: conform itself where a case allows that, or a process for each trial.  [auto]",
)
@click.option(
    "--gate",
    type=click.Choice(["must", "should", "all"]),
    default="all",
    help="Failures of which levels are unexpected: must; must and should; all.  [all]",
)
@click.option(
    "--seed", type=click.IntRange(0, 2**32 - 1), default=0, help="Sequence numbers and ports follow from it.  [0]"
)
@click.option("--repeat", type=click.IntRange(1, 100_000), default=1, metavar="N", help="Run each trial N times.")
@click.option(
    "--retry",
    type=click.IntRange(0, 10),
    default=0,
    metavar="N",
    help="Run what was unexpected up to N times more. What then passes is flaky: told apart, but no pass.",
)
@click.option(
    "--timeout", type=click.FloatRange(1, 3600), default=180.0, metavar="SECONDS", help="For one trial.  [180]"
)
@click.option(
    "--pcap", type=click.Choice(["failed", "all", "none"]), default="failed", help="Whose captures to keep.  [failed]"
)
@click.option("-j", "jobs", type=click.IntRange(1, 64), metavar="N", help="Worker processes.  [one a core]")
@click.option("-x", "stop_first", is_flag=True, help="Stop at the first unexpected result.")
@click.option(
    "--out",
    type=shared.PATH,
    metavar="DIR",
    help="Where to write; an earlier run there is replaced.  [reports/TIME-STACK]",
)
def command(
    paths: tuple[Path, ...],
    keyword: str | None,
    tags: tuple[str, ...],
    requirements: tuple[str, ...],
    levels: tuple[str, ...],
    last_failed: bool,
    ip: str,
    jobs: int | None,
    stacks: tuple[str, ...],
    **rest: Any,
) -> int:
    """Run the cases in the files and directories PATH against a stack, and report.

    Ctrl-C ends a run within a second; what had finished is reported. Nor does it end where nobody reads what it prints.
    """
    from conform.run.command import Options
    from conform.run.select import Selection

    options = Options(
        paths=paths,
        stack=stacks[0],
        selection=Selection(keyword, tags, requirements, levels),
        last_failed=last_failed,
        versions=shared.versions(ip),
        jobs=jobs or 0,
        **rest,
    )
    if len(stacks) == 1:
        return _run(options).exit
    from conform.cli import compare, reporting
    from conform.run.several import run_each

    several = run_each(options, stacks, _run, reporting.complain)
    if len(several.runs) > 1:
        compare.tell(several.runs, page=several.directory / "compare.html")
    return several.exit


def _run(options: Options) -> Ran:
    """One run of one stack, told of and reported."""
    from conform.cli import reporting
    from conform.run.command import run

    reporter = reporting.Reporter()
    try:
        ran = run(options, reporting.say, reporting.complain, reporter)
    finally:
        reporter.close()
    for text in reporter.wrong:
        reporting.complain(text)
    if reporter.wrong:
        ran.exit = 3
    return ran
