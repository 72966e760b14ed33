"""Figures as people read them on a page."""

from __future__ import annotations

import pytest

from runner.dashboard.plots import _ZERO
from runner.dashboard.wording import size


@pytest.mark.parametrize(
    ("number", "words"),
    [(0, "0 B"), (1023, "1023 B"), (1024, "1.0 KiB"), (3014, "2.9 KiB"), (10_200, "10 KiB"), (5 * 1024**2, "5.0 MiB")],
)
def test_sizes_are_rounded_and_not_cut(number: int, words: str) -> None:
    assert size(number) == words


@pytest.mark.parametrize(
    ("words", "mark"),
    [
        ("75.0 %", "75 %"),
        ("99.50 %", "99.5 %"),
        ("99.00 %", "99 %"),
        ("100 %", "100 %"),
        ("0.05", "0.05"),
        ("10", "10"),
    ],
)
def test_marks_have_no_idle_zeros(words: str, mark: str) -> None:
    assert _ZERO.sub("", words) == mark
