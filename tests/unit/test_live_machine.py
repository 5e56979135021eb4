"""A machine that cannot run live tests skips them, but not in CI."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from types import ModuleType

import pytest

from conform.link import netns, privileges
from conform.run import preflight


@pytest.fixture
def machine() -> ModuleType:
    found = importlib.util.spec_from_file_location("machine", Path(__file__).parents[1] / "live/machine.py")
    assert found is not None
    assert found.loader is not None
    module = importlib.util.module_from_spec(found)
    found.loader.exec_module(module)
    return module


@pytest.mark.parametrize(("ci", "outcome"), [("true", pytest.fail.Exception), ("", pytest.skip.Exception)])
def test_an_unusable_machine(
    machine: ModuleType, monkeypatch: pytest.MonkeyPatch, ci: str, outcome: type[BaseException]
) -> None:
    monkeypatch.setenv("CI", ci)
    lacks = preflight.Machine([preflight.Finding("privileges", False, "no namespaces", "", True)])
    monkeypatch.setattr(preflight, "examine", lambda: lacks)
    with pytest.raises(outcome, match="no namespaces"):
        machine.needs_trials()

    monkeypatch.setattr(privileges, "check_tun", lambda: privileges.Check("tun", False, "no driver"))
    with pytest.raises(outcome, match="no driver"):
        machine.needs_link("tun")

    def forbidden() -> None:
        raise netns.PrivilegeError("forbidden here", "sudo")

    monkeypatch.setattr(privileges, "is_privileged", lambda: False)
    monkeypatch.setattr(netns, "enter_user_namespace", forbidden)
    with pytest.raises(outcome, match="forbidden here"):
        machine.isolated(lambda: None)()


def test_a_device_that_an_ordinary_user_may_not_open_is_no_fault_of_ci(
    machine: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CI", "true")
    monkeypatch.setattr(privileges, "check_tun", lambda: privileges.Check("tun", False, "mode 0600"))
    monkeypatch.setattr(machine.os, "geteuid", lambda: 1000)
    monkeypatch.setattr(machine, "_closed", lambda: True)
    with pytest.raises(pytest.skip.Exception, match="mode 0600"):
        machine.needs_link("tun")
