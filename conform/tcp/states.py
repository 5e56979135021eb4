"""RFC 9293's connection states and their transitions, as one table (section 3.3.2, figure 5, and section 3.10).

Whatever depends on which state follows which asks :func:`follow`, the tracker above all; the diagram in
``docs/states.md`` is generated from :data:`TRANSITIONS` too.

An event is what the *stack* undergoes: a user call (``passive-open``, ``active-open``, ``close``, ``abort``), a segment
it accepts (``rcv …``), or time (``2msl``, ``timeout``). ``rcv ack-of-fin`` is an acceptable ACK that covers the stack's
FIN; ``rcv fin`` a FIN whose ACK does not, ``rcv fin+ack-of-fin`` a FIN whose ACK does; ``rcv rst`` a reset that passes
the checks of section 3.10.7.4 (exact, where RFC 5961 is claimed); ``rcv syn`` a SYN that opens a connection or, in
SYN-RECEIVED after a passive open, one in the window that ends it.
"""

from __future__ import annotations

CLOSED = "CLOSED"
LISTEN = "LISTEN"
SYN_SENT = "SYN-SENT"
SYN_RECEIVED = "SYN-RECEIVED"
ESTABLISHED = "ESTABLISHED"
FIN_WAIT_1 = "FIN-WAIT-1"
FIN_WAIT_2 = "FIN-WAIT-2"
CLOSE_WAIT = "CLOSE-WAIT"
CLOSING = "CLOSING"
LAST_ACK = "LAST-ACK"
TIME_WAIT = "TIME-WAIT"

#: All states, in the RFC's order, and CLOSED, which is no state but the lack of one.
STATES = (
    LISTEN, SYN_SENT, SYN_RECEIVED, ESTABLISHED, FIN_WAIT_1, FIN_WAIT_2, CLOSE_WAIT, CLOSING, LAST_ACK, TIME_WAIT,
    CLOSED,
)  # fmt: skip

#: States in which both ends know each other's sequence numbers (section 3.10.7.4 treats them together).
SYNCHRONIZED = frozenset({ESTABLISHED, FIN_WAIT_1, FIN_WAIT_2, CLOSE_WAIT, CLOSING, LAST_ACK, TIME_WAIT})

#: States in which arriving text is taken (section 3.10.7.4, seventh).
RECEIVING = frozenset({ESTABLISHED, FIN_WAIT_1, FIN_WAIT_2})

#: States in which the stack has sent its FIN.
FIN_SENT = frozenset({FIN_WAIT_1, FIN_WAIT_2, CLOSING, LAST_ACK, TIME_WAIT})

#: state -> event -> the state that follows.
TRANSITIONS: dict[str, dict[str, str]] = {
    CLOSED: {"passive-open": LISTEN, "active-open": SYN_SENT},
    LISTEN: {"rcv syn": SYN_RECEIVED, "active-open": SYN_SENT, "close": CLOSED, "abort": CLOSED},
    SYN_SENT: {
        "rcv syn": SYN_RECEIVED,
        "rcv syn+ack": ESTABLISHED,
        "rcv rst": CLOSED,
        "close": CLOSED,
        "abort": CLOSED,
        "timeout": CLOSED,
    },
    SYN_RECEIVED: {
        "rcv ack": ESTABLISHED,
        "rcv fin": CLOSE_WAIT,
        "rcv rst": CLOSED,  # back to LISTEN, which for a listener of its own is this connection's end
        "rcv syn": CLOSED,  # and so is this
        "close": FIN_WAIT_1,
        "abort": CLOSED,
        "timeout": CLOSED,
    },
    ESTABLISHED: {"rcv fin": CLOSE_WAIT, "rcv rst": CLOSED, "close": FIN_WAIT_1, "abort": CLOSED, "timeout": CLOSED},
    FIN_WAIT_1: {
        "rcv ack-of-fin": FIN_WAIT_2,
        "rcv fin": CLOSING,
        "rcv fin+ack-of-fin": TIME_WAIT,
        "rcv rst": CLOSED,
        "abort": CLOSED,
        "timeout": CLOSED,
    },
    FIN_WAIT_2: {"rcv fin": TIME_WAIT, "rcv rst": CLOSED, "abort": CLOSED, "timeout": CLOSED},
    CLOSE_WAIT: {"close": LAST_ACK, "rcv rst": CLOSED, "abort": CLOSED, "timeout": CLOSED},
    CLOSING: {"rcv ack-of-fin": TIME_WAIT, "rcv rst": CLOSED, "abort": CLOSED, "timeout": CLOSED},
    LAST_ACK: {"rcv ack-of-fin": CLOSED, "rcv rst": CLOSED, "abort": CLOSED, "timeout": CLOSED},
    TIME_WAIT: {"2msl": CLOSED, "rcv rst": CLOSED, "rcv syn": SYN_RECEIVED, "abort": CLOSED},
}


def follow(state: str, event: str) -> str:
    """The state after *event* in *state*: the same where the table has no transition."""
    return TRANSITIONS[state].get(event, state)
