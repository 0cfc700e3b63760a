"""`python -m pixlex`: the commands where the script `pixlex` is not installed."""

from __future__ import annotations

import sys

from pixlex.cli import main

if __name__ == "__main__":
    sys.exit(main())
