"""A trial's verdict from its line in the run file: the same inputs through the same session."""

from __future__ import annotations

import json
from typing import Any

from conform.case.model import Case
from conform.engine.session import Session
from conform.engine.transcript import event_of
from conform.engine.trial import StackProfile, Trial
from conform.engine.verdict import Verdict


class Altered(Exception):  # noqa: N818
    """A line whose transcript is not what its own inputs give: it was changed, or another version wrote it."""


def trial_of(line: dict[str, Any]) -> Trial:
    """The trial that *line* is of. Raises KeyError, ValueError or TypeError when *line* is not a trial line."""
    return Trial(
        id=line["id"],
        case_id=line["case"],
        file=line["file"],
        ip=line["ip"],
        row=line["row"],
        document=line["document"],
        case=Case.model_validate(line["document"]),
        levels=line["levels"],
        stack=StackProfile.from_json(line["stack"]),
        seed=line["seed"],
    )


def judge(line: dict[str, Any]) -> Verdict:
    """The verdict of *line*, derived from all in it but its stored verdict.

    Raises Altered when the replay does not give the transcript that the line holds, and what :func:`trial_of` raises.
    A trial that never ran (not-applicable, or conform's own failure outside the session) keeps its stored verdict: it
    has no transcript to derive one from.
    """
    stored = Verdict.from_json(line["verdict"])
    if not line["transcript"]:
        if stored.outcome not in ("not-applicable", "error"):
            raise Altered(f"{line['id']}: a verdict of {stored.outcome} without a transcript")
        return stored
    session = Session(trial_of(line))
    try:
        session.start(line["transcript"][0]["t"])
        for entry in line["transcript"]:
            event = event_of(entry)
            if event is not None:
                session.receive(event, entry["t"])
    except (ArithmeticError, AttributeError, LookupError, TypeError, ValueError) as error:
        raise Altered(f"{line['id']}: an entry of its transcript is none: {error}") from error
    if session.verdict is None:
        raise Altered(f"{line['id']}: its transcript ends before its verdict")
    if json.loads(json.dumps(session.transcript.entries)) != line["transcript"]:
        raise Altered(f"{line['id']}: its transcript is not what its own inputs give")
    return session.verdict
