"""Stacks under test: their descriptions, the agent protocol, and the agents and state read-out of the Linux stack."""
