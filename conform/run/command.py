"""``conform run`` from its options to its exit code. What is printed goes through the reporter.

What is large is imported only once the warden is forked, which shares main's memory for as long as it lives.
"""

from __future__ import annotations

import contextlib
import os
import secrets
import tempfile
from collections.abc import Callable, Collection
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import conform
from conform.run import events, preflight
from conform.run.exits import EXIT_BROKEN, EXIT_NOTHING, EXIT_USAGE
from conform.run.runfile import FORMAT, LATEST, NAME, REPORTS, Reader, RunFileError, dumps
from conform.run.select import Selection, SelectionError
from conform.run.warden import Warden

if TYPE_CHECKING:
    from conform.case.source import Problem
    from conform.run.expectations import Expectations
    from conform.run.pool import Outcome
    from conform.run.worker import PcapChoice

Say = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class Options:
    """The command's options."""

    paths: tuple[Path, ...]
    stack: str = "linux"
    selection: Selection = field(default_factory=Selection)
    last_failed: bool = False
    versions: tuple[int, ...] = (4, 6)
    link: preflight.LinkChoice = "auto"
    agent: str = "auto"
    gate: str = "all"
    seed: int = 0
    repeat: int = 1
    retry: int = 0
    timeout: float = 180.0
    pcap: PcapChoice = "failed"
    jobs: int = 0
    stop_first: bool = False
    out: Path | None = None
    expect: tuple[Path, ...] = ()

    def to_json(self) -> dict[str, Any]:
        """As the run file's header has them."""
        return {
            "paths": [str(path) for path in self.paths],
            "stack": self.stack,
            "seed": self.seed,
            "ip": list(self.versions),
            "link": self.link,
            "agent": self.agent,
            "jobs": self.jobs,
            "retry": self.retry,
            "repeat": self.repeat,
            "gate": self.gate,
            "pcap": self.pcap,
            "timeout": self.timeout,
            "expect": [str(path) for path in self.expect],
            "selection": self.selection.to_json(),
        }


@dataclass(slots=True)
class Ran:
    """What became of it. ``directory`` is where the run's files are, if it came so far."""

    exit: int
    directory: Path | None = None
    outcome: Outcome | None = None


def run(options: Options, say: Say, complain: Say, report: events.Reporter) -> Ran:
    """Check, plan, run. *say* prints what was found, *complain* what is wrong; *report* gets the run's events."""
    machine = preflight.examine(options.link)
    warden = None
    scratch = os.path.join(tempfile.gettempdir(), f"conform-{os.getpid()}-{secrets.token_hex(4)}")
    if machine.usable:
        from conform.link.netns import PrivilegeError

        try:
            preflight.acquire()
        except PrivilegeError as error:  # it was possible a moment ago
            machine.findings.append(preflight.Finding("privileges", False, error.cause, error.remedy, True))
        else:
            warden = Warden(scratch)  # before all that is large is loaded: it stays as small as main is now
    try:
        return _run(options, machine, warden, scratch, say, complain, report)
    finally:
        if warden is not None:
            warden.close()


def _run(
    options: Options,
    machine: preflight.Machine,
    warden: Warden | None,
    scratch: str,
    say: Say,
    complain: Say,
    report: events.Reporter,
) -> Ran:
    from conform.case.load import load
    from conform.requirements import catalogue
    from conform.run import adapters, expectations, plan
    from conform.run.place import Place, PlaceError
    from conform.run.pool import Pool, now
    from conform.run.worker import Settings

    try:
        selection = _selection(options)
    except (SelectionError, RunFileError) as error:
        complain(str(error))
        return Ran(EXIT_USAGE)
    try:
        stack = adapters.describe(options.stack, machine, scratch if machine.usable else None)
    except adapters.StackError as error:
        complain(str(error))
        return Ran(EXIT_USAGE if error.usage else EXIT_BROKEN)
    loaded = load(list(options.paths))
    known = expectations.load(options.expect or expectations.files(options.paths, stack.profile.name))
    problems = [*loaded.problems, *known.problems]
    if problems:
        for problem in problems:
            complain(str(problem))
        complain(f"{len(problems)} problem{'s' * (len(problems) > 1)}: nothing was run")
        return Ran(EXIT_USAGE)
    levels = {name: requirement.level for name, requirement in catalogue().items()}
    try:
        planned = plan.build(
            loaded.cases,
            stack,
            levels,
            versions=options.versions,
            selection=selection,
            seed=options.seed,
            repeat=options.repeat,
        )
    except (plan.PlanError, SelectionError) as error:
        complain(str(error))
        return Ran(EXIT_USAGE)
    if not planned.trials:
        if selection.only is not None and not selection.only:
            complain("--lf: everything in the last run was as expected; nothing is selected")
        else:
            complain(f"no trial is selected; there are {planned.known} to select from (conform list shows them)")
        return Ran(EXIT_NOTHING)
    for text in preflight.brief(machine):
        (say if machine.usable else complain)(text)
    if warden is None or machine.link is None or not machine.usable:
        complain("no trial can be run on this machine as it is (conform doctor says more)")
        return Ran(EXIT_BROKEN)
    try:
        place = Place(options.out, stack.profile.name)
    except PlaceError as error:
        complain(str(error))
        return Ran(EXIT_USAGE)
    stale = [str(problem) for problem in _stale(options, known, planned.everything)]
    header = {
        "kind": "header",
        "format": FORMAT,
        "conform": conform.__version__,
        "started": now(),
        "environment": machine.environment,
        "stack": {"name": stack.profile.name, "description": stack.to_json()},
        "settings": options.to_json(),
        "planned": list(planned.ids()),
        "stale": stale,
    }
    settings = Settings(
        link=machine.link,
        directory=place.directory,
        agent=options.agent,  # type: ignore[arg-type]
        gate=options.gate,
        pcap=options.pcap,
        timeout=options.timeout,
        retry=options.retry,
        scratch=scratch,
    )
    jobs = adapters.workers(stack, options.jobs or len(os.sched_getaffinity(0)))
    with contextlib.closing(place):
        try:
            place.writer.write(dumps(header))
        except RunFileError as error:
            place.forget()
            complain(str(error))
            return Ran(EXIT_BROKEN)
        report(events.RunStarted(header, str(place.directory), len(planned)))
        pool = Pool(
            planned,
            settings,
            known,
            place.writer,
            warden,
            adapters.factory(stack, jobs),
            report,
            jobs=jobs,
            stop_first=options.stop_first,
            stale=stale,
        )
        outcome = pool.run()
    if outcome.reporting:
        complain(f"what the run said is incomplete, its run file is not:\n{outcome.reporting}")
    return Ran(outcome.exit, place.directory, outcome)


def _stale(options: Options, known: Expectations, trials: Collection[str]) -> list[Problem]:
    """Entries of the lists of deviations that match no trial; none where the run is only of some of their cases."""
    from conform.run import expectations

    if options.selection.to_json() or options.last_failed or set(options.versions) != {4, 6}:
        return []
    whole = {file for file in expectations.files(options.paths) if expectations.whole(file, options.paths)}
    return [each for each in known.unmatched(trials) if Path(each.file).resolve() in whole]


def _selection(options: Options) -> Selection:
    if not options.last_failed:
        return options.selection
    own = options.out if options.out is not None and (options.out / NAME).is_file() else REPORTS / LATEST
    return replace(options.selection, only=unexpected(own))


def unexpected(run: Path) -> frozenset[str]:
    """The trials of a run that were not as expected, those without a verdict among them; without their ``#n``."""
    reader = Reader(run)
    left = set(reader.header.get("planned", ()))
    found = set()
    for line in reader.trials():
        left.discard(line["id"])
        if not line.get("expected"):
            found.add(line["id"])
    return frozenset(name.partition("#")[0] for name in found | left)
