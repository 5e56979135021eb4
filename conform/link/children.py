"""Work that is done in a process of its own, so that neither a namespace nor a failure stays behind in main."""

from __future__ import annotations

import contextlib
import json
import os
import signal
from collections.abc import Callable
from typing import Any

from conform.link import netns

_LONGEST = 15.0


def in_child(work: Callable[[], Any], longest: float = _LONGEST, *, starts: bool = False) -> Any:
    """The result of *work*, made in a child: JSON-able. A text says why there is none.

    A child that takes more than *longest* seconds is killed. With *starts* it starts processes of its own: they end
    with it, however it ends, where PID namespaces can be had.
    """
    reader, writer = os.pipe()
    pid = os.fork()
    if pid == 0:
        code = 1
        with contextlib.suppress(BaseException):
            os.close(reader)
            signal.alarm(int(longest))  # a child that hangs must not keep main
            netns.die_with_parent()
            if starts:
                _become_init()
            try:
                value = work()
            except Exception as error:
                value = f"{type(error).__name__}: {error}"
            with os.fdopen(writer, "w") as out:
                json.dump(value, out)
            code = 0
        os._exit(code)
    os.close(writer)
    with os.fdopen(reader) as file:
        text = file.read()
    _, status = os.waitpid(pid, 0)
    if status or not text:
        return f"the process that looked ended with status {os.waitstatus_to_exitcode(status)}"
    return json.loads(text)


def _become_init() -> None:
    """Go on as the first process of a PID namespace, whose end is that of all in it; the caller's own waits for it."""
    try:
        netns.unshare(netns.CLONE_NEWPID)
    except OSError:
        return
    pid = os.fork()
    if pid:
        _, status = os.waitpid(pid, 0)
        os._exit(1 if status else 0)
    netns.die_with_parent()
