"""`python -m guardlit_callbacks.report`."""

import sys

from guardlit_callbacks.report.writer import main

if __name__ == "__main__":
    sys.exit(main())
