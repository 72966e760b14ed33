"""`python -m runner`: the same as the `runner` command."""

from __future__ import annotations

from .cli.program import main

if __name__ == "__main__":
    main()
