"""`python -m smope` is the `smope` command."""

from __future__ import annotations

import sys

from smope.cli.main import main

if __name__ == "__main__":
    sys.exit(main())
