"""The command line. Nothing here is imported by the rest of the package."""

from __future__ import annotations

import sys

__all__ = ["main"]


def main() -> None:
    """Run the command line of this process, and exit."""
    try:
        from .program import main as run  # takes most of the time until a verb begins
    except KeyboardInterrupt:
        sys.exit(130)  # as later on
    run()
