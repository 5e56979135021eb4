"""``conform agent-check``: an agent that keeps to the document passes, and each that breaks it in one way is caught."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path

import pytest
from click.testing import CliRunner

from conform.cli import group
from conform.stacks import agentcheck

AGENT = Path(__file__).with_name("memory_agent.py")


def _setup(flaw: str = "", bound: float = 10.0) -> agentcheck.Setup:
    command = [sys.executable, "-I", "-S", str(AGENT), *([flaw] if flaw else [])]
    return agentcheck.Setup(command, {4: ("192.0.2.1", "192.0.2.2")}, bound=bound, settings={"speed": "2"})


def _first_failure(flaw: str, bound: float = 10.0) -> agentcheck.Finding:
    findings = agentcheck.check(_setup(flaw, bound))
    try:
        found = next((finding for finding in findings if finding.verdict == "failed"), None)
    finally:
        findings.close()  # type: ignore[attr-defined]
    assert found is not None, "the flaw was not caught"
    return found


#: Flaws that show in what the agent says: each with the check that catches it, and the section of the document.
SPOKEN = {
    "any version": ("a version that it does not speak is refused", "Hello"),
    "invents capabilities": ("hello is replied to", "Hello"),
    "cannot call": ("hello is replied to", "Hello"),
    "chatters": ("hello is replied to", "The channel"),
    "forgets returned": ("hello is replied to", "Replies"),
    "replies twice": ("hello is replied to", "Replies"),
    "faults unknown keys": ("unknown keys", "The channel"),
    "dies of garbage": ("a line that is no JSON", "The channel"),
    "errors for faults": ("an unknown call", "Replies"),
    "faults closed names": ("an unknown name is a fault, a closed one EBADF", "Requests"),
    "takes taken names": ("an unknown name is a fault", "Replies"),
    "takes any flag": ("a value of the wrong shape", "Replies"),
    "sets anything": ("an unknown setting", "Requests"),
    "crashes in accept": ("a stack connects to itself", "The channel"),
    "lists addresses": ("a stack connects to itself", "Replies"),
    "peer is self": ("getsockname and getpeername", "Replies"),
    "plain text": ("send and recv carry octets", "The calls"),
    "no end": ("shutdown ends one direction", "The calls"),
    "numbers its errors": ("each of many requests", "Replies"),
    "other names": ("MSG_PEEK leaves octets", "Replies"),
    "no signal": ("shutdown ends one direction", "Replies"),
    "signals always": ("shutdown ends one direction", "Replies"),
    "polls at once": ("poll waits for events", "The calls"),
    "dup is a word": ("dup makes another", "The calls"),
    "numbers for truth": ("socket options", "Socket options"),
    "spells states its way": ("states are read out", "States and settings"),
    "blocked twice": ("set-nonblocking", "Overlapping"),
    "blocked unasked": ("poll waits for events", "Replies"),
    "blocked when ready": ("a call that does not sleep", "Overlapping"),
    "one hello": ("a second hello", "Hello"),
    "remembers names": ("a second hello", "Hello"),
    "keeps settings": ("a hello gives back what set changed", "Hello"),
    "gives back the last": ("a hello gives back what set changed", "Hello"),
    "numbers settings": ("a hello gives back what set changed", "States and settings"),
    "ends badly": ("it ends with its input", "The channel"),
}
#: Flaws that show in silence, for which a short one does.
SILENT = {
    "cuts payloads": ("a payload of 300,000 octets", "Replies"),
    "peeking takes": ("MSG_PEEK leaves octets", "Replies"),
    "claims urgent": ("an urgent octet", "The calls"),
    "always blocks": ("set-nonblocking", "Replies"),
    "a read is a line": ("a line may come in pieces", "Replies"),
    "keeps ids small": ("each of many requests", "Replies"),
    "blocked too late": ("set-nonblocking", "Overlapping"),
    "silent on unknown calls": ("an unknown call", "Replies"),
    "never says blocked": ("set-nonblocking", "Overlapping"),
    "holds up all": ("set-nonblocking", "Overlapping"),
    "outlives its input": ("it ends with its input", "The channel"),
}


def test_an_agent_that_keeps_to_the_document_passes() -> None:
    findings = list(agentcheck.check(_setup()))
    assert [str(each) for each in findings if each.verdict == "failed"] == []
    open_ends = {each.what: each.came for each in findings if each.verdict == "not checked"}
    assert all("does not claim" in reason for reason in open_ends.values()), open_ends
    assert len(findings) - len(open_ends) > 30


@pytest.mark.parametrize("flaw", SPOKEN)
def test_a_flaw_is_caught(flaw: str) -> None:
    found = _first_failure(flaw)
    what, section = SPOKEN[flaw]
    assert what in found.what
    assert found.section == section
    assert found.came
    assert found.rule
    assert found.lines


@pytest.mark.parametrize("flaw", SILENT)
def test_a_silence_is_caught(flaw: str) -> None:
    found = _first_failure(flaw, bound=3.0)
    what, section = SILENT[flaw]
    assert what in found.what
    assert found.section == section


#: The agent in memory, with one thing that it does otherwise; ``m`` is the module.
OTHERWISE = """import os, sys
sys.path.insert(0, {directory!r})
sys.argv[1:] = []
import memory_agent as m
Agent, file = m.Agent, {file!r}
{change}
m.main()
"""
#: Changes that break the document: each with the check that catches it, the section, and what is said.
BROKEN = {
    "a listener outlives hello": (
        """
greet, bind, taken = Agent.greet, Agent.bind, set()
def bound(self, request, on):
    if request["port"] in taken:
        raise m.CallError("EADDRINUSE")
    return bind(self, request, on)
def greeted(self, request):
    taken.update(each.port for each in self.table.values() if each and each.queue is not None)
    greet(self, request)
Agent.bind, Agent.greet = bound, greeted
""",
        ("a second hello", "Hello", "EADDRINUSE"),
    ),
    "calls that slept are replied to at hello": (
        """
greet = Agent.greet
def greeted(self, request):
    for id, *_ in self.sleeping:
        self.say({"id": id, "returned": -1, "error": "EBADF"})
    greet(self, request)
Agent.greet = greeted
""",
        ("a second hello", "Hello", "which slept"),
    ),
    "calls that slept are replied to after hello": (
        """
greet = Agent.greet
def greeted(self, request):
    slept = [id for id, *_ in self.sleeping]
    greet(self, request)
    for id in slept:
        self.say({"id": id, "returned": -1, "error": "EBADF"})
Agent.greet = greeted
""",
        ("a second hello", "Replies", "awaits none"),
    ),
    "connections outlive hello": (
        """
greet, state, left = Agent.greet, Agent.state, {}
def stated(self, request):
    reply = state(self, request)
    return reply | {"value": "FIN-WAIT-1"} if (request["port"], request["peer"]) in left else reply
def greeted(self, request):
    left.update({(each.port, each.peer.port): 1 for each in self.table.values() if each and each.peer})
    greet(self, request)
Agent.state, Agent.greet = stated, greeted
""",
        ("a second hello", "Hello", "a connection is left, in FIN-WAIT-1"),
    ),
    "connections outlive hello, and nobody sees them": (
        """
m.CAPABILITIES.remove("states")
greet, bind, taken = Agent.greet, Agent.bind, set()
def bound(self, request, on):
    if request["port"] in taken:
        raise m.CallError("EADDRINUSE")
    return bind(self, request, on)
def greeted(self, request):
    taken.update(each.port for each in self.table.values() if each and each.peer)
    greet(self, request)
Agent.bind, Agent.greet = bound, greeted
""",
        ("a second hello", "Hello", "still taken: EADDRINUSE"),
    ),
    "connections outlive the agent": (
        """
bind, accept = Agent.bind, Agent.accept
def accepted(self, request, on):
    reply = accept(self, request, on)
    open(file, "w").write(str(reply["address"]["port"]))
    return reply
def bound(self, request, on):
    if os.path.exists(file) and request["port"] == int(open(file).read()):
        raise m.CallError("EADDRINUSE")
    return bind(self, request, on)
Agent.accept, Agent.bind = accepted, bound
greet = Agent.greet
def greeted(self, request):
    if self.hello and os.path.exists(file):
        os.remove(file)
    greet(self, request)
Agent.greet = greeted
""",
        ("it ends with its input", "The channel", "still taken: EADDRINUSE"),
    ),
    "connect is a fault": (
        """
def connect(self, request, on):
    raise m.FaultError("no such address")
Agent.connect = connect
""",
        ("a stack connects to itself", "The calls", "no such address"),
    ),
    "dup is claimed": ('m.CALLS.remove("dup")', ("dup makes another", "Hello", "no dup")),
    "dup is claimed, and ends in ENOSYS": (
        """
def dup(self, request, on):
    raise m.CallError("ENOSYS")
Agent.dup = dup
""",
        ("dup makes another", "Hello", "no dup"),
    ),
    "states are claimed": ('m.CALLS.remove("state")', ("states are read out", "Hello", "no state")),
    "fork is claimed": ('m.CAPABILITIES.append("fork")', ("fork: a child", "Hello", "no fork")),
    "urgent is claimed": (
        """
m.CAPABILITIES.append("urgent")
send = Agent.send
def sent(self, request, on):
    if "MSG_OOB" in request.get("flags", []):
        raise m.CallError("EOPNOTSUPP")
    return send(self, request, on)
Agent.send = sent
""",
        ("an urgent octet", "Hello", "no send of"),
    ),
    "tcp-info is claimed": ('m.CAPABILITIES.append("tcp-info")', ("options of the capabilities", "Hello", "TCP_INFO")),
    "fast-open is claimed": (
        """
m.CAPABILITIES.append("fast-open")
def setsockopt(self, request, on):
    if request["option"] == "TCP_FASTOPEN":
        raise m.CallError("ENOPROTOOPT")
    return {"returned": 0}
Agent.setsockopt = setsockopt
m.Agent.getsockopt = lambda self, request, on: {"returned": 0, "value": True}
""",
        ("options of the capabilities", "Hello", "no TCP_FASTOPEN"),
    ),
    "a refusal has an id": (
        """
say = Agent.say
Agent.say = lambda self, message: say(self, {**message, "id": 7} if "version" in str(message) else message)
""",
        ("a version that it does not speak", "Hello", "a fault without id"),
    ),
}
#: Changes that the document leaves free.
FREE = {
    "addresses are no words": """
def literal(call):
    def made(self, request, on):
        if request.get("address") not in ("any", "192.0.2.1", "192.0.2.2"):
            raise m.FaultError("no address")
        return call(self, request, on)
    return made
Agent.bind, Agent.connect = literal(Agent.bind), literal(Agent.connect)
""",
    "digits are upper case": """
recv = Agent.recv
def received(self, request, on):
    reply = recv(self, request, on)
    return reply | {"data": reply["data"].upper()}
Agent.recv = received
""",
    "no state can be seen": """
Agent.state = lambda self, request: {"returned": 0, "value": None}
""",
    "one end's state can be seen": """
state = Agent.state
Agent.state = lambda self, request: state(self, request) if request["peer"] < 50000 else {"returned": 0, "value": None}
""",
}


def _otherwise(change: str, tmp_path: Path) -> agentcheck.Setup:
    code = OTHERWISE.format(directory=str(AGENT.parent), file=str(tmp_path / "left"), change=change)
    return replace(_setup(), command=[sys.executable, "-I", "-S", "-c", code])


@pytest.mark.parametrize("name", BROKEN)
def test_what_breaks_the_document_is_caught(name: str, tmp_path: Path) -> None:
    change, (what, section, came) = BROKEN[name]
    findings = [each for each in agentcheck.check(_otherwise(change, tmp_path)) if each.verdict == "failed"]
    # One that claims what it has not fails elsewhere as well: also where the stack's values are looked at.
    assert what in "".join(each.what for each in findings), findings
    (found,) = [each for each in findings if what in each.what]
    assert (found.section, came in found.came) == (section, True), found


@pytest.mark.parametrize("name", FREE)
def test_what_the_document_leaves_free_passes(name: str, tmp_path: Path) -> None:
    findings = list(agentcheck.check(_otherwise(FREE[name], tmp_path)))
    assert [str(each) for each in findings if each.verdict == "failed"] == []
    assert all("does not claim" in each.came for each in findings if each.verdict == "not checked")


@pytest.mark.parametrize("flaw", ["does not reach itself", "never connects"])
def test_what_needs_a_peer_is_not_checked_where_the_stack_does_not_reach_itself(flaw: str) -> None:
    findings = list(agentcheck.check(_setup(flaw)))
    assert [str(each) for each in findings if each.verdict == "failed"] == []
    said = {each.what.partition(": ")[2]: each for each in findings}
    assert said["a payload of 300,000 octets arrives whole"].came == "the stack does not reach itself at 192.0.2.1"
    assert said["a call that sleeps holds up no other"].verdict == "ok"
    assert said["it ends with its input"].verdict == "ok"


def test_an_agent_must_speak_of_one_ip_version() -> None:
    found = list(agentcheck.check(_setup("declines")))[-1]
    assert (found.verdict, found.what) == ("failed", "hello is replied to in one IP version")
    assert "no such version" in found.came


def test_a_call_that_the_least_agent_lacks_is_not_checked() -> None:
    findings = list(agentcheck.check(_setup("no poll")))
    assert [str(each) for each in findings if each.verdict == "failed"] == []
    assert "the agent has no poll" in {each.came for each in findings}


@pytest.mark.parametrize(
    ("settings", "said"),
    [({}, "no setting to try was named: --set NAME=VALUE"), ({"speed": "1"}, "speed was 1 already")],
)
def test_settings_are_checked_where_one_is_named_that_can_be_told_from_none(
    settings: dict[str, str], said: str
) -> None:
    findings = list(agentcheck.check(replace(_setup(), settings=settings)))
    assert [each.came for each in findings if each.what.endswith("gives back what set changed")] == [said]


def test_checks_go_on_with_a_fresh_agent_where_one_died() -> None:
    findings = list(agentcheck.check(_setup("dies of garbage")))
    verdicts = {each.what.partition(": ")[2]: each.verdict for each in findings}
    assert verdicts["a line that is no JSON is a fault"] == "failed"
    assert verdicts["a line that is no object is a fault"] == "failed"
    assert verdicts["an unknown call is a fault"] == "ok"
    assert verdicts["it ends with its input"] == "ok"


def test_a_failure_shows_what_was_sent_what_came_and_what_the_document_says() -> None:
    found = _first_failure("faults unknown keys")
    assert str(found).splitlines() == [
        "FAILED  IPv4: unknown keys of a request are ignored",
        '        > {"id": 2, "do": "socket", "as": "odd", "novelty": [1, {"x": null}]}',
        '        < {"id": 2, "fault": "what is novelty?"}',
        "        a fault",
        '        docs/agent-protocol.md, "The channel": unknown keys of a request are to be ignored',
    ]


def test_what_a_dying_agent_printed_is_shown() -> None:
    assert "assertion failed: pcb != NULL" in _first_failure("crashes in accept").came


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        ((sys.executable, "-I", "-S", str(AGENT)), 0, "0 failed"),
        ((sys.executable, "-I", "-S", str(AGENT), "one hello"), 1, "FAILED  IPv4: a second hello"),
        (("/nowhere/agent",), 2, "/nowhere/agent: No such file"),
    ],
)
def test_the_verb(arguments: tuple[str, ...], code: int, said: str) -> None:
    result = CliRunner().invoke(group, ["agent-check", "--stack", "192.0.2.1", *arguments], standalone_mode=False)
    assert result.return_value == code
    assert said in result.output


def test_every_section_that_is_named_is_in_the_document() -> None:
    document = (Path(__file__).parents[2] / "docs/agent-protocol.md").read_text(encoding="utf-8")
    source = "".join(each.read_text(encoding="utf-8") for each in Path(agentcheck.__file__).parent.glob("*.py"))
    for section in {section for _, section in [*SPOKEN.values(), *SILENT.values()]} | {"Processes"}:
        assert f'"{section}"' in source
        assert f"## {section}\n" in document


def test_addresses_are_taken_in_pairs() -> None:
    made = agentcheck.setup(["x"], (4, 6), ["2001:db8::1", "192.0.2.1"], ["192.0.2.2"], {"interface": "tap0"}, 1.0)
    assert made.addresses == {4: ("192.0.2.1", "192.0.2.2"), 6: ("2001:db8::1", "2001:db8::1")}
    assert made.link == {4: {"interface": "tap0", "prefix": 24}, 6: {"interface": "tap0", "prefix": 64}}
    assert agentcheck.setup(["x"], (4,), [], [], {}, 1.0, ["a=b=c"]).settings == {"a": "b=c"}
    with pytest.raises(ValueError, match="NAME=VALUE"):
        agentcheck.setup(["x"], (4,), [], [], {}, 1.0, ["=1"])
    for versions, stacks, testers in (((6,), ["192.0.2.1"], []), ((4,), [], ["192.0.2.2"]), ((4,), ["x"], [])):
        with pytest.raises(ValueError, match=r"IP version|IPv4"):
            agentcheck.setup(["x"], versions, stacks, testers, {}, 1.0)
