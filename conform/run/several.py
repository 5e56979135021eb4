"""Several stacks in one go: a run of each, one after the other, each in its own directory, then held side by side."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path

from conform.run.command import Options, Ran, Say
from conform.run.exits import EXIT_USAGE
from conform.run.runfile import REPORTS
from conform.stacks.description import DescriptionError, load

#: Of several exit codes the one that is the whole's: what is conform's own failure hides nothing, nor is it hidden.
_WORST = (3, 2, 1, 5, 0)


@dataclass(slots=True)
class Several:
    """What became of all. ``directory`` holds a run of each stack, by its name."""

    directory: Path
    runs: list[Path] = field(default_factory=list)
    exit: int = 0


def run_each(options: Options, stacks: Sequence[str], run: Callable[[Options], Ran], complain: Say) -> Several:
    """Have *run* make a run of each of *stacks*, by its name or its description's file. A signal ends them all.

    Nothing is run where one of them cannot be described, or two have one name: *complain* is told.
    """
    directory = options.out
    if directory is None:
        directory = REPORTS / f"{datetime.now(UTC).strftime('%Y%m%dT%H%M%SZ')}-{len(stacks)}-stacks"
    found = Several(directory)
    named: dict[str, str] = {}
    for stack in stacks:
        try:
            name = load(stack).name
        except DescriptionError as error:
            complain(str(error))
            return Several(directory, exit=EXIT_USAGE)
        if name in named:
            complain(f"--stack {stack}: its name is {name}, and so is that of --stack {named[name]}")
            return Several(directory, exit=EXIT_USAGE)
        named[name] = stack
    codes: list[int] = []
    for name, stack in named.items():
        ran = run(replace(options, stack=stack, out=directory / name))
        codes.append(ran.exit)
        if ran.directory is not None:
            found.runs.append(ran.directory)
        if ran.exit >= 128:
            found.exit = ran.exit
            return found
    found.exit = min(codes, key=_WORST.index)
    return found
