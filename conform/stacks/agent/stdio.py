"""``python -I -S .../conform/stacks/agent/stdio.py``: conform's agent on standard input and output.

A file that is run by its path, because the system that it runs on need not have conform installed: the standard
library, and this directory, are all that it uses.
"""

import sys
from pathlib import Path

if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).resolve().parents[3]))
    from conform.stacks.agent.hub import main

    main()
