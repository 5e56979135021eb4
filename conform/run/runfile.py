"""Reads and writes ``run.jsonl`` (docs/run-format.md).

Main is the only writer. A line goes out in one ``write`` to a descriptor opened for appending, so a run that is killed
has every trial that was announced, and at most one line cut short, which the reader drops. Where the disk is full the
file ends with the last whole line.
"""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

FORMAT = 1
NAME = "run.jsonl"
#: Where runs go that are told no other place, and what leads there to the last one.
REPORTS = Path("reports")
LATEST = "latest"
#: What a trial's line has in every format from 1 on, and of which type.
_TRIAL: dict[str, type] = {
    "id": str, "case": str, "title": str, "file": str, "row": str, "ip": int, "attempt": int, "seed": int, "link": str,
    "document": dict, "levels": dict, "stack": dict, "transcript": list, "verdict": dict, "result": str,
    "expected": bool,
}  # fmt: skip


class RunFileError(Exception):
    """The file is no run file, of a format that this version does not know, or cannot be written. Says where."""


def dumps(value: dict[str, Any]) -> bytes:
    """*value* as one line, newline included."""
    return json.dumps(value, separators=(",", ":"), ensure_ascii=False).encode("utf-8", "surrogatepass") + b"\n"


class Writer:
    """Appends to a run file that did not exist before."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_APPEND | os.O_CLOEXEC, 0o644)
        self._size = 0
        self._broken = ""

    def write(self, line: bytes) -> None:
        """Append *line*, which ends with its newline.

        Raises RunFileError where that cannot be done: nothing of *line* is then in the file, and nothing will be that
        comes after it.
        """
        view = memoryview(line)
        try:
            while view and not self._broken:
                view = view[os.write(self._fd, view) :]
        except OSError as error:
            self._broken = f"{self.path}: {error.strerror}"
            with contextlib.suppress(OSError):
                os.ftruncate(self._fd, self._size)
        if self._broken:
            raise RunFileError(self._broken)
        self._size += len(line)

    def close(self) -> None:
        """Done. Closing twice is harmless."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1


def locate(run: Path) -> Path:
    """The run file meant by *run*: itself, or the one in that directory."""
    path = run / NAME if run.is_dir() else run
    if not path.is_file():
        raise RunFileError(f"{run}: there is no run file here ({NAME}, as `conform run` writes it)")
    return path


class Reader:
    """A run file, read line by line: nothing is kept but the header and, once read past, the end.

    Raises :class:`RunFileError` for what is no run file. A last line that was cut short is dropped, and ``cut`` is set.
    """

    def __init__(self, path: Path) -> None:
        self.path = locate(path)
        self.end: dict[str, Any] | None = None
        self.cut = False
        first = next(self._lines(), None)
        if first is None or first.get("kind") != "header":
            raise RunFileError(f"{self.path}:1: a run file begins with its header")
        found = first.get("format")
        if not isinstance(found, int) or found < 1:
            raise RunFileError(f"{self.path}:1: format {found!r} is none that was ever written")
        if found > FORMAT:
            raise RunFileError(
                f"{self.path}:1: format {found}, written by conform {first.get('conform')}; this version reads up to"
                f" format {FORMAT}: use a newer conform"
            )
        self.header = first

    def trials(self) -> Iterator[dict[str, Any]]:
        """The trial lines, in the order in which they finished."""
        for number, line in enumerate(self._lines(), 1):
            kind = line.get("kind")
            if kind == "trial":
                for key, wanted in _TRIAL.items():
                    if not isinstance(line.get(key), wanted):
                        raise RunFileError(
                            f"{self.path}:{number}: a trial's line without {key}, or not as it should be"
                        )
                yield line
            elif kind == "end":
                self.end = line
            elif kind == "header" and number > 1:
                raise RunFileError(f"{self.path}:{number}: a second header")

    def _lines(self) -> Iterator[dict[str, Any]]:
        try:
            with open(self.path, "rb") as file:
                for number, raw in enumerate(file, 1):
                    if not raw.endswith(b"\n"):
                        self.cut = True
                        return
                    try:
                        line = json.loads(raw)
                    except ValueError as error:
                        raise RunFileError(f"{self.path}:{number}: not JSON: {error}") from None
                    if not isinstance(line, dict):
                        raise RunFileError(f"{self.path}:{number}: each line is a JSON object")
                    yield line
        except OSError as error:
            raise RunFileError(f"{self.path}: {error.strerror}") from None
