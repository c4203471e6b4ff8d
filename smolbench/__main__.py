"""``python -m smolbench``."""

import sys

from smolbench.cli import main

if __name__ == "__main__":
    sys.exit(main())
