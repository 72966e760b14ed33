"""What the cases saw, as a table in a page and as JSON beside it; a run of a few cases replaces their rows only."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from .trial import Outcome

__all__ = ["publish"]

_BEGIN, _END = "<!-- cases -->", "<!-- end of cases -->"
_CASES = (
    "case",
    "what was done",
    "PostgreSQL",
    "published",
    "delivered",
    "lost",
    "twice",
    "recovered",
    "bites",
    "seed",
)
_MUTANTS = ("mutant", "what it does", "caught by", "what was found first")


def publish(outcomes: Iterable[Outcome], page: Path) -> None:
    """Put the outcomes into the page, between its markers, and into the JSON of the same name."""
    path = page.with_suffix(".json")
    rows = {_key(row): row for row in (json.loads(path.read_text()) if path.exists() else [])}
    rows |= {_key(row): row for row in (outcome.dump() for outcome in outcomes)}
    kept = [rows[key] for key in sorted(rows)]
    path.write_text("[\n" + ",\n".join(json.dumps(row) for row in kept) + "\n]\n")
    before, _, rest = page.read_text().partition(_BEGIN)
    _, _, after = rest.partition(_END)
    cases = _table(_CASES, [_case(row) for row in kept if not row["mutant"]])
    mutants = _table(_MUTANTS, [_mutant(row) for row in kept if row["mutant"]])
    page.write_text(f"{before}{_BEGIN}\n\n{cases}\n\n{mutants}\n\n{_END}{after}")


def _key(row: dict[str, Any]) -> tuple[str, str, str, int]:
    return row["mutant"], row["case"], row["what"], -(row["postgres"] or 0)


def _table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    return "\n".join(f"| {' | '.join(cells)} |" for cells in (head, ("---",) * len(head), *rows))


def _mutant(row: dict[str, Any]) -> tuple[str, ...]:
    return row["mutant"], row["what"], row["case"], row["found"].replace("|", "\\|")


def _case(row: dict[str, Any]) -> tuple[str, ...]:
    recovered = "" if row["recovered"] is None else f"{row['recovered']:.1f} s"
    if row["limit"] is not None:
        recovered += f" of {row['limit']:g} s"
    return (
        row["case"],
        row["what"],
        str(row["postgres"] or "SQLite"),
        f"{row['published']:,}",
        f"{row['delivered']:,}",
        str(row["lost"]),
        f"{row['duplicated']} of {row['bound']}" if row["bound"] else str(row["duplicated"]),
        recovered,
        ", ".join(f"{name} {count:,}" for name, count in row["bites"].items()),
        str(row["seed"]),
    )
