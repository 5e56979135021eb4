"""What live tests need of the machine. A test whose machine is unusable is skipped, but fails in CI: a suite that ran
nothing there is no suite that passed.
"""

from __future__ import annotations

import errno
import functools
import os
import traceback
from collections.abc import Callable
from typing import Any, NoReturn

import pytest

from conform.link import netns, privileges
from conform.link.tun import TunMedium
from conform.run import preflight


@functools.cache
def found() -> preflight.Machine:
    """What conform finds."""
    return preflight.examine()


def unusable(reason: str) -> NoReturn:
    """The test cannot be run here."""
    if os.environ.get("CI", "") not in ("", "0", "false"):
        pytest.fail(f"this machine cannot run a live test: {reason}", pytrace=False)
    pytest.skip(reason)


def needs_trials() -> None:
    """The test runs trials."""
    machine = found()
    if not machine.usable:
        unusable("; ".join(each.text for each in machine.findings if each.needed and not each.ok) or "no link")


def needs_link(name: str) -> None:
    """The test runs trials on *name*: ``tun``, ``veth``.

    An ordinary user may not be allowed to open /dev/net/tun, in CI too: conform then has veth.
    """
    check = {"tun": privileges.check_tun, "veth": privileges.check_veth}[name]()
    if check.ok:
        return
    if name == "tun" and os.geteuid() != 0 and _closed():
        pytest.skip(f"veth is tested alone: {check.found}")
    unusable(f"{name}: {check.found}")


def _closed() -> bool:
    try:
        os.close(os.open("/dev/net/tun", os.O_RDWR | os.O_CLOEXEC))
    except OSError as error:
        return error.errno == errno.EACCES
    return False


def isolated(test: Callable[..., None]) -> Callable[..., None]:
    """Run *test* in a child process that has a home namespace of its own."""

    @functools.wraps(test)
    def run(*args: Any, **kwargs: Any) -> None:
        if kwargs.get("medium") is TunMedium:
            needs_link("tun")
        reading, writing = os.pipe()
        child = os.fork()
        if child == 0:
            code = 1
            try:
                if privileges.is_privileged():
                    netns.unshare_home()
                else:
                    netns.enter_user_namespace()
                test(*args, **kwargs)
                code = 0
            except pytest.skip.Exception as reason:
                os.write(writing, str(reason).encode())
                code = 2
            except netns.PrivilegeError as reason:
                os.write(writing, str(reason).encode())
                code = 3
            except BaseException:
                os.write(writing, traceback.format_exc().encode()[-60000:])
            finally:
                os._exit(code)
        os.close(writing)
        with open(reading) as pipe:
            told = pipe.read()
        code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        if code == 2:
            pytest.skip(told)
        if code == 3:
            unusable(told)
        assert code == 0, told

    return run
