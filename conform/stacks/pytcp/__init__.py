"""PyTCP (PyPI pmd-pytcp) as a stack under test: the program that is both the stack and its agent."""
