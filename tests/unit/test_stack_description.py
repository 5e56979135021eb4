"""Stack descriptions: what Linux's says, and what is refused."""

import re
from pathlib import Path

import jsonschema
import pytest
import yaml

import conform.stacks
from conform.case import source as located
from conform.case.expr import TIMERS
from conform.case.model import Case
from conform.case.vocabulary import CAPABILITIES, SETTINGS
from conform.engine.runtime import CALL_PATIENCE
from conform.engine.trial import StackProfile
from conform.stacks.description import (
    PATIENCE,
    DescriptionError,
    Mechanism,
    SettingError,
    StackDescription,
    load,
    schema,
    shipped,
)

LINUX = Path(__file__).parents[2] / "conform/stacks/linux.yaml"
CASE = {"title": "A case about settings", "covers": ["x"], "steps": [{"probe": "alive"}]}


@pytest.fixture(scope="module")
def linux():
    return load("linux")


def changed(tmp_path, **changes):
    data = yaml.safe_load(LINUX.read_text()) | changes
    path = tmp_path / "mine.yaml"
    path.write_text(yaml.safe_dump({key: value for key, value in data.items() if value is not None}))
    return path


def test_linux_says_all_that_cases_can_ask_for(linux):
    assert set(linux.settings) == set(SETTINGS)
    assert set(linux.profile.timers) == set(TIMERS)
    assert set(CAPABILITIES) - linux.capabilities == {"md5"}


def test_profile_survives_the_run_file(linux):
    assert StackProfile.from_json(linux.profile.to_json()) == linux.profile


def test_load_takes_a_path(linux, tmp_path):
    assert load(changed(tmp_path)).model_dump() == linux.model_dump()


def test_defaults_are_given_to_every_trial(linux):
    resolved = linux.resolve({}, {})
    assert resolved.sysctls == {
        "net.ipv4.tcp_challenge_ack_limit": "2147483647",
        "net.ipv4.tcp_invalid_ratelimit": "0",
        "net.ipv4.tcp_comp_sack_nr": "0",
        "net.ipv4.tcp_congestion_control": "reno",
    }
    assert resolved.route == {"quickack": 1}
    assert resolved.mtu is None


@pytest.mark.parametrize(
    ("setting", "value", "sysctl", "written"),
    [
        ("timestamps", "off", "net.ipv4.tcp_timestamps", "0"),
        ("timestamps", False, "net.ipv4.tcp_timestamps", "0"),
        ("timestamps", True, "net.ipv4.tcp_timestamps", "1"),
        ("ecn", "passive", "net.ipv4.tcp_ecn", "2"),
        ("fin-wait-2-timeout", "2s", "net.ipv4.tcp_fin_timeout", "2"),
        ("fin-wait-2-timeout", "timer.rto.initial * 3", "net.ipv4.tcp_fin_timeout", "3"),
        ("invalid-ratelimit", "500ms", "net.ipv4.tcp_invalid_ratelimit", "500"),
        ("challenge-limit", 5, "net.ipv4.tcp_challenge_ack_limit", "5"),
        ("challenge-limit", "5", "net.ipv4.tcp_challenge_ack_limit", "5"),
        ("receive-buffer", 4096, "net.ipv4.tcp_rmem", "4096 4096 4096"),
        ("congestion-control", "cubic", "net.ipv4.tcp_congestion_control", "cubic"),
    ],
)
def test_settings_become_sysctls(linux, setting, value, sysctl, written):
    assert linux.resolve({setting: value}, {}).sysctls[sysctl] == written


def test_settings_become_route_and_link(linux):
    resolved = linux.resolve({"delayed-ack": "on", "initial-window": 10, "mtu": 1400}, {})
    assert (resolved.route, resolved.mtu) == ({"initcwnd": 10}, 1400)


def test_raw_sysctl_wins(linux):
    resolved = linux.resolve({"sack": "on"}, {"net.ipv4.tcp_sack": 0, "net.ipv4.tcp_base_mss": 512})
    assert resolved.sysctls["net.ipv4.tcp_sack"] == "0"
    assert resolved.sysctls["net.ipv4.tcp_base_mss"] == "512"


@pytest.mark.parametrize(
    ("setting", "value"),
    [
        ("congestion-control", "vegas"),
        ("timestamps", "maybe"),
        ("timestamps", 7),
        ("syn-retries", 0),
        ("syn-retries", 128),
        ("fin-wait-2-timeout", 5),
        ("fin-wait-2-timeout", "soon"),
        ("fin-wait-2-timeout", "timer.unknown"),
        ("invalid-ratelimit", "2 *"),
        ("initial-window", "ten"),
    ],
)
def test_what_cannot_be_set_is_refused(linux, setting, value):
    with pytest.raises(SettingError, match=setting):
        linux.resolve({setting: value}, {})


def test_lacks_says_why(linux, tmp_path):
    assert linux.lacks(Case.model_validate(CASE | {"settings": {"sack": "off"}})) is None
    assert "cubic" in linux.without({"cubic"}).lacks(
        Case.model_validate(CASE | {"settings": {"congestion-control": "cubic"}})
    )
    bare = load(changed(tmp_path, settings=None, defaults=None))
    assert bare.lacks(Case.model_validate(CASE | {"settings": {"sack": "off"}})) == "linux has no way to set sack"


def test_raw_sysctls_are_for_linux(linux):
    with pytest.raises(SettingError, match="no sysctls"):
        linux.without({"linux"}).resolve({}, {"net.ipv4.tcp_sack": 0})


def test_without_drops_what_follows(linux):
    less = linux.without({"reno": "why", "ipv6": "why"})
    assert "net.ipv4.tcp_congestion_control" not in less.resolve({}, {}).sysctls
    assert set(less.profile.addresses) == {4}


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"colour": "red"}, "colour"),
        ({"capabilities": ["calls", "ipv4", "ipv6", "linuks"]}, "did you mean 'linux'"),
        ({"timers": {"msl": 30}}, "timers lacks response.max"),
        ({"settings": {"sakc": {"sysctl": "net.a"}}}, "did you mean 'sack'"),
        ({"settings": {"sack": {"sysctl": "net.a", "route": "quickack", "takes": "count"}}}, "exactly one"),
        ({"settings": {"sack": {"sysctl": "net.a"}}}, "has values"),
        ({"addresses": {"ipv4": {"stack": "2001:db8::1", "tester": "192.0.2.2"}}}, "no IPv4 address"),
        ({"capabilities": ["calls", "ipv4", "reno"]}, "capabilities lacks ipv6"),
        ({"round-trip": 1}, "round-trip"),
        ({"settle": "sometimes"}, "settle"),
        ({"settle": 0}, "settle"),
        ({"settle": 5}, "settle: 5.0 s is too long: after 5 times response.max, 5 s"),
        ({"tolerance": -1}, "tolerance"),
        ({"format": 2}, "format"),
    ],
)
def test_a_bad_description_is_refused(tmp_path, changes, words):
    with pytest.raises(DescriptionError, match=words) as caught:
        load(changed(tmp_path, **changes))
    assert str(caught.value).startswith(str(tmp_path))


def test_a_settling_as_long_as_is_waited_for(tmp_path):
    assert PATIENCE == CALL_PATIENCE
    assert load(changed(tmp_path, settle=4.9)).settle == 4.9


def test_unreadable_descriptions_are_refused(tmp_path):
    with pytest.raises(DescriptionError, match="did you mean 'linux'"):
        load("linus")
    (tmp_path / "a.yaml").write_text("a: [")
    with pytest.raises(DescriptionError, match=r"a\.yaml"):
        load(tmp_path / "a.yaml")
    (tmp_path / "b.yaml").write_bytes(b"\xff")
    with pytest.raises(DescriptionError, match=r"b\.yaml"):
        load(tmp_path / "b.yaml")
    (tmp_path / "c.yaml").write_text("- 1")
    with pytest.raises(DescriptionError, match=r"a stack.s description is a mapping"):
        load(tmp_path / "c.yaml")


def test_on_and_off_need_no_quotes(tmp_path):
    path = changed(tmp_path)
    path.write_text(LINUX.read_text().replace('"on"', "on").replace('"off"', "off"))
    assert load(path).settings == load("linux").settings
    assert load(path).resolve({}, {}) == load("linux").resolve({}, {})


def test_a_description_cannot_change(linux):
    with pytest.raises(ValueError, match="frozen"):
        linux.name = "other"
    assert isinstance(linux, StackDescription)
    assert isinstance(linux.settings["sack"], Mechanism)


@pytest.mark.parametrize("name", shipped())
def test_what_ships_satisfies_the_schema(name):
    path = Path(conform.stacks.__file__).with_name(f"{name}.yaml")
    read = located.read(path)
    root, problems = located.parse(read)
    assert not problems
    jsonschema.Draft202012Validator.check_schema(schema())
    jsonschema.validate(located.plain(root), schema())
    assert load(name).name == name


def test_the_schema_refuses_what_load_refuses():
    with pytest.raises(jsonschema.ValidationError, match="linuks"):
        jsonschema.validate({"capabilities": ["linuks"]}, {**schema(), "required": []})


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"link": "tap"}, "wants a stack that is started"),
        ({"start": {"command": ["x"]}}, "a link of its own"),
        (
            {"link": "tap", "start": {"command": ["{interfaec}"]}, "settings": {}, "defaults": {}},
            "did you mean {interface}",
        ),
        ({"link": "tap", "start": {"command": []}}, "start.command"),
        ({"link": "tap", "start": {"command": ["x"], "comand": 1}}, "did you mean 'command'"),
        ({"link": "tap", "start": {"command": ["x"]}, "agent": "none"}, "capabilities cannot have calls"),
        ({"link": {"interface": "eth1"}, "agent": "stack"}, "nothing is started"),
        ({"link": {"interface": "eth1"}, "parallel": 64}, "one trial runs at a time: parallel: 1"),
        ({"settings": {"delayed-ack": {"route": "quickack", "values": {"off": "no"}}}, "defaults": {}}, "has off: no"),
        ({"link": "tap", "start": {"command": ["x"]}, "agent": "stack"}, "other stacks' settings are the agent's"),
        ({"ready": [{"line": "("}]}, "no regular expression"),
        ({"services": {"ecko": 7}}, "did you mean 'echo'"),
    ],
)
def test_a_start_that_makes_no_sense_is_refused(tmp_path, changes, words):
    with pytest.raises(DescriptionError, match=re.escape(words)):
        load(changed(tmp_path, **changes))


def test_on_an_interface_trials_would_hear_each_other(tmp_path):
    own = {"link": {"interface": "eth1"}, "agent": "none", "reset": "none", "settings": {}, "defaults": {}}
    text = yaml.safe_load(LINUX.read_text())["capabilities"]
    own["capabilities"] = [word for word in text if word in ("ipv4", "ipv6")]
    assert load(changed(tmp_path, **own)).parallel == 1
    assert load(changed(tmp_path, **own, parallel=1)).parallel == 1


def test_a_fault_is_told_with_its_place(tmp_path):
    text = LINUX.read_text().replace("tolerance: 0.05", "tolerence: 0.05")
    (tmp_path / "a.yaml").write_text(text)
    with pytest.raises(DescriptionError) as caught:
        load(tmp_path / "a.yaml")
    line = next(n for n, each in enumerate(text.splitlines(), 1) if each.startswith("tolerence"))
    assert f"a.yaml:{line}:1: unknown key 'tolerence'" in str(caught.value)
    assert "did you mean 'tolerance'?" in str(caught.value)
    assert "    | ^^^^^^^^^" in str(caught.value).replace("      |", "    |")
