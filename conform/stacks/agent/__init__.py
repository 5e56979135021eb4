"""What runs beside the stack: the calls, and the process that makes them. The standard library alone, quick to load."""
