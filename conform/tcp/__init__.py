"""TCP as RFC 9293 has it: segments, sequence arithmetic, the state table and the stack's variables. No I/O."""
