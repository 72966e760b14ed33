"""Actions: what a visitor whose token has the scope for it does on a page, asked once more where it concerns many."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from ..operations import Operations
    from .view import View

__all__ = ["Act", "Action", "Outcome", "Question"]


@dataclass(frozen=True, slots=True)
class Act:
    """One use of an action: `view.path` has the parameters of its path, `view.visitor.name` who does it."""

    view: View
    form: Mapping[str, str]

    @property
    def operations(self) -> Operations:
        """The operations as those of the visitor."""
        return self.view.surface.operations.by(f"dashboard:{self.view.visitor.name}")


@dataclass(frozen=True, slots=True, kw_only=True)
class Question:
    """
    The question before an action, after a dry run.

    Attributes:
        text: what would happen, with the count.
        yes: the words on the button that does it; None where there is nothing to do.
        back: the address to return to; empty for the form, with what is in it.
        danger: whether it cannot be undone.
    """

    title: str
    text: str
    yes: str | None
    back: str
    danger: bool = False


@dataclass(frozen=True, slots=True)
class Outcome:
    """The result of an action: a sentence for the next page, and the address of that page."""

    text: str
    to: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Action:
    """
    An action.

    Its route is a POST with a form that has the field `csrf`. The site checks the origin, the session, that field and
    the scope before anything else. Without `confirm` in the form it shows the question, where there is one,
    whose button sends the form again with it.

    Attributes:
        path: of its route; what follows `BASE`.
        do: does it. Raise any error of the package, which is shown as a page.
        ask: returns the question; None to act at once.
        fields: of the form, which the question passes on.
        scopes: of which the token needs one.
        again: the template of the form, to be shown with what is in it where something of that is wrong.
    """

    path: str
    do: Callable[[Act], Awaitable[Outcome]]
    ask: Callable[[Act], Awaitable[Question]] | None = None
    fields: tuple[str, ...] = ()
    scopes: frozenset[str] = frozenset({"admin"})
    again: str = ""
