"""How a trial ends before its last step: each an exception that a step raises and the session makes a verdict of."""

from __future__ import annotations

from conform.engine.verdict import Failure


class StepFailed(Exception):  # noqa: N818
    """The stack did not do what the step says."""

    def __init__(self, failure: Failure, covers: tuple[str, ...] = ()) -> None:
        super().__init__(failure.summary)
        self.failure = failure
        self.covers = covers


class Undecided(Exception):  # noqa: N818
    """conform was late, and whether the stack was cannot be told."""


class Broken(Exception):  # noqa: N818
    """conform itself failed."""


class Senseless(Exception):  # noqa: N818
    """What the case asks for makes no sense in this trial: neither the stack's fault nor conform's."""


class NotTaken(LookupError):  # noqa: N818
    """What a step names would have been kept on a way that the stack did not go."""
