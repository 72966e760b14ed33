"""`/audit`: who changed what by hand."""

from __future__ import annotations

from typing import Any

from ..operations.shapes import action_json
from ..storage.contract.audit import ActionQuery
from .endpoints import Call, Endpoint, cursor, limit, page, past, text

__all__ = ["ENDPOINTS"]


async def _list(call: Call) -> dict[str, Any]:
    query = dict(call.query)
    size, cursor = query.pop("limit", 100), query.pop("cursor", None)
    asked = ActionQuery(
        actor=query.pop("who", None),
        name=query.pop("action", None),
        before_seq=None if cursor is None else cursor[0],
        limit=size,
        **query,
    )
    views = await call.surface.storage.audit.actions(asked)
    return page("audit", [action_json(each) for each in views], [views[-1].seq] if len(views) == size else None)


ENDPOINTS = (
    Endpoint(
        method="GET",
        path="/audit",
        need="read",
        summary="List actions by hand, the newest first.",
        answer="ActionPage",
        handle=_list,
        query={
            "who": text("Only of this actor, such as `cli:*`; `*` stands for any characters."),
            "action": text("Only these actions, such as `deliveries.*`; `*` stands for any characters."),
            "since": past("Begun at or after this time."),
            "until": past("Begun before this time."),
            "limit": limit(),
            "cursor": cursor("audit"),
        },
    ),
)
