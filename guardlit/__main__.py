"""`python -m guardlit`, the same as `guardlit`."""

import sys

from guardlit.cli import main

if __name__ == "__main__":
    sys.exit(main())
