"""``python -m conform`` is the command ``conform``."""

from conform.cli import main

if __name__ == "__main__":
    main()
