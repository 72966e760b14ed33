"""The page of the audit log."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ..api.parameters import moment
from ..storage.contract.audit import ActionQuery
from .events import page_size, seq_of
from .view import Page, View

__all__ = ["PAGES"]


async def _list(view: View) -> Mapping[str, Any]:
    asked: dict[str, Any] = {"actor": view.query.get("who"), "name": view.query.get("action")}
    asked |= {name: moment(name, view.query[name]) for name in ("since", "until") if name in view.query}
    query = ActionQuery(**asked, before_seq=seq_of(view), limit=page_size + 1)
    found = await view.surface.storage.audit.actions(query)
    return {
        "entries": found[:page_size],
        "following": found[page_size - 1].seq if len(found) > page_size else None,
        "filtered": any(value is not None for value in asked.values()),
        "newest": {name: value for name, value in view.query.items() if name != "before"},
    }


PAGES = (Page(path="/audit", template="audit.html", look=_list, query=("who", "action", "since", "until", "before")),)
