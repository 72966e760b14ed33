"""Stub."""

from __future__ import annotations

from .view import Page

__all__ = ["PAGES"]

PAGES: tuple[Page, ...] = ()
