"""`python -m convergio.workers.cli`: the `convergio` command."""

import sys

from convergio.workers.cli import main

if __name__ == "__main__":
    sys.exit(main())
