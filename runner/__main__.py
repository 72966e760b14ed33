"""`python -m runner`: the same as the `runner` command."""

from __future__ import annotations

import sys

# Python puts the working directory first, where a json.py would take the place of the standard one in all that follows.
if not sys.flags.safe_path:
    sys.path.append(sys.path.pop(0))

from .cli import main  # only now

if __name__ == "__main__":
    main()
