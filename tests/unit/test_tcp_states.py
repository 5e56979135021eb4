"""The table of states against RFC 9293: figure 5 line by line, and the text of section 3.10 where it says more."""

import pytest

from conform.tcp import states as st
from conform.tcp.states import TRANSITIONS, follow

#: Figure 5, each arrow. "passive-open" etc. stand for the user's calls; what follows "/" there is left out.
FIGURE_5 = [
    ("CLOSED", "passive-open", "LISTEN"),
    ("CLOSED", "active-open", "SYN-SENT"),
    ("LISTEN", "close", "CLOSED"),
    ("LISTEN", "rcv syn", "SYN-RECEIVED"),
    ("LISTEN", "active-open", "SYN-SENT"),
    ("SYN-SENT", "close", "CLOSED"),
    ("SYN-SENT", "rcv syn", "SYN-RECEIVED"),
    ("SYN-SENT", "rcv syn+ack", "ESTABLISHED"),
    ("SYN-RECEIVED", "rcv ack", "ESTABLISHED"),
    ("SYN-RECEIVED", "close", "FIN-WAIT-1"),
    ("ESTABLISHED", "close", "FIN-WAIT-1"),
    ("ESTABLISHED", "rcv fin", "CLOSE-WAIT"),
    ("FIN-WAIT-1", "rcv ack-of-fin", "FIN-WAIT-2"),
    ("FIN-WAIT-1", "rcv fin", "CLOSING"),
    ("FIN-WAIT-2", "rcv fin", "TIME-WAIT"),
    ("CLOSE-WAIT", "close", "LAST-ACK"),
    ("CLOSING", "rcv ack-of-fin", "TIME-WAIT"),
    ("LAST-ACK", "rcv ack-of-fin", "CLOSED"),
    ("TIME-WAIT", "2msl", "CLOSED"),
]
#: Section 3.10: note 3 of figure 5, the fourth and the eighth check of 3.10.7.4, MAY-2.
TEXT = [
    ("FIN-WAIT-1", "rcv fin+ack-of-fin", "TIME-WAIT"),
    ("SYN-RECEIVED", "rcv syn", "CLOSED"),
    ("SYN-RECEIVED", "rcv fin", "CLOSE-WAIT"),
    ("TIME-WAIT", "rcv syn", "SYN-RECEIVED"),
]
ANYWHERE = {"rcv rst", "abort", "timeout"}


@pytest.mark.parametrize(("state", "event", "after"), FIGURE_5 + TEXT)
def test_transition(state: str, event: str, after: str) -> None:
    assert follow(state, event) == after


def test_there_is_no_other_transition() -> None:
    known = {(state, event) for state, event, _ in FIGURE_5 + TEXT}
    found = {(state, event) for state, events in TRANSITIONS.items() for event in events if event not in ANYWHERE}
    assert found == known


@pytest.mark.parametrize("event", sorted(ANYWHERE))
def test_what_ends_a_connection_ends_it_from_anywhere(event: str) -> None:
    for events in TRANSITIONS.values():
        assert events.get(event, "CLOSED") == "CLOSED"
    without = {s for s, events in TRANSITIONS.items() if event not in events}
    # A listener has no connection to reset or to time out; TIME-WAIT has a time of its own.
    assert without <= {"CLOSED", "LISTEN", "TIME-WAIT"}


def test_every_state_is_reached() -> None:
    reached, edge = {st.CLOSED}, [st.CLOSED]
    while edge:
        for after in TRANSITIONS[edge.pop()].values():
            if after not in reached:
                reached.add(after)
                edge.append(after)
    assert reached == set(st.STATES) == set(TRANSITIONS)


def test_every_state_is_left() -> None:
    for state, events in TRANSITIONS.items():
        assert any(after != state for after in events.values())


def test_the_merged_event_equals_both_in_a_row() -> None:
    merged = follow(st.FIN_WAIT_1, "rcv fin+ack-of-fin")
    assert merged == follow(follow(st.FIN_WAIT_1, "rcv ack-of-fin"), "rcv fin") == st.TIME_WAIT
    assert merged == follow(follow(st.FIN_WAIT_1, "rcv fin"), "rcv ack-of-fin")


def test_what_the_table_does_not_have_changes_nothing() -> None:
    assert follow(st.FIN_WAIT_1, "close") == st.FIN_WAIT_1
    assert follow(st.CLOSED, "rcv fin") == st.CLOSED
