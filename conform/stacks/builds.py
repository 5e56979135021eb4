"""What stacks need built: made once under the user's cache directory, and found there again.

A build's directory is named after the stack and a digest of its recipe and of the files beside the description that the
recipe names, so that a changed recipe builds anew and an unchanged one never does.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

from conform.stacks.description import StackDescription

_DONE = ".built"


class BuildError(Exception):
    """What is needed is missing, or a command failed; the text has the command and the end of what it printed."""


def cache() -> Path:
    """Where builds are kept: ``$CONFORM_CACHE``, else conform's part of ``$XDG_CACHE_HOME`` or ``~/.cache``."""
    own = os.environ.get("CONFORM_CACHE")
    if own:
        return Path(own)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "conform"


def directory(description: StackDescription) -> Path:
    """Where the stack's build is, or would be."""
    build = description.build
    if build is None or description.path is None:
        return cache() / description.name
    digest = hashlib.sha256(build.model_dump_json().encode())
    for path in _inputs(description):
        digest.update(path.name.encode() + path.read_bytes())
    return cache() / f"{description.name}-{digest.hexdigest()[:12]}"


def _inputs(description: StackDescription) -> Iterator[Path]:
    """The files below the description's directory that its build's commands name, directories with all they hold."""
    build, path = description.build, description.path
    assert build is not None
    assert path is not None
    for command in build.commands:
        for word in command:
            _, here, rest = word.partition("{here}")
            named = (path.parent / rest.lstrip("/")) if here and rest.strip("/") else None
            if named is None:
                continue
            if named.is_dir():
                yield from sorted(each for each in named.rglob("*") if each.is_file() and each.suffix != ".pyc")
            elif named.is_file():
                yield named


def missing(description: StackDescription) -> list[str]:
    """What must be installed before the build, each with its command."""
    build = description.build
    if build is None:
        return []
    return [f"{need}: {remedy}" for need, remedy in build.needs.items() if not _there(need)]


def _there(need: str) -> bool:
    return Path(need).exists() if need.startswith("/") else shutil.which(need) is not None


def built(description: StackDescription) -> bool:
    """Whether there is nothing to build, or it is built."""
    return description.build is None or (directory(description) / _DONE).exists()


def build(description: StackDescription, say: Callable[[str], None], *, force: bool = False) -> Path:
    """Build what the stack needs, unless it is there; *say* is given each command. Raises :class:`BuildError`."""
    recipe = description.build
    place = directory(description)
    if recipe is None or (built(description) and not force):
        return place
    lacks = missing(description)
    if lacks:
        raise BuildError("\n".join(f"{description.name} cannot be built without {lack}" for lack in lacks))
    fresh = place.with_name(f"{place.name}.{os.getpid()}")
    shutil.rmtree(fresh, ignore_errors=True)
    fresh.mkdir(parents=True)
    values = {
        "build": str(fresh),
        "here": str(description.path.parent if description.path else ""),
        "python": sys.executable,
    }
    try:
        for command in recipe.commands:
            words = description.filled(command, values)
            say("+ " + " ".join(words))
            _run(words, fresh)
        for name in recipe.makes:
            if not (fresh / name).exists():
                raise BuildError(f"the commands of {description.name} ended well, and {name} is not there")
        (fresh / _DONE).touch()
        shutil.rmtree(place, ignore_errors=True)
        fresh.rename(place)
    finally:
        shutil.rmtree(fresh, ignore_errors=True)
    return place


def _run(words: list[str], place: Path) -> None:
    try:
        done = subprocess.run(
            words, cwd=place, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
        )
    except OSError as error:
        raise BuildError(f"{words[0]}: {error.strerror}") from None
    if done.returncode:
        said = "\n".join(done.stdout.decode("utf-8", "replace").splitlines()[-30:])
        raise BuildError(f"{' '.join(words)}\nended with status {done.returncode}:\n{said}")
