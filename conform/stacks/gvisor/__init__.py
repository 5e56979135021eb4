"""gVisor under runsc: what starts it."""
