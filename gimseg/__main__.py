"""``python -m gimseg``: the commands."""

import sys

from gimseg.cli import main

if __name__ == "__main__":
    sys.exit(main())
