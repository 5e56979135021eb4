"""conform: a packet-level protocol conformance tester for TCP."""

__version__ = "0.1.0"
