"""A secret: text that is never shown."""

from __future__ import annotations

import re
from typing import Any

from pydantic import GetCoreSchemaHandler
from pydantic_core import CoreSchema, core_schema

from ..log.redaction import MASK, know

__all__ = ["Secret"]

_CONTROL = re.compile(r"[\x00-\x08\x0a-\x1f\x7f]")


class Secret:
    """
    Text whose `str`, `repr`, format and JSON are `***`; `reveal()` is the only access.

    From its creation on the text is redacted in everything that is kept or printed. It is no subclass of `str`: joins,
    formatting and JSON encoders would expose the text silently.
    """

    __slots__ = ("_text",)

    def __init__(self, text: str, *, public: tuple[str | None, ...] = ()) -> None:
        """Args: public is the text shown beside it, such as the user; see `redaction.know()`."""
        self._text = text
        know(text, public=public)

    def reveal(self) -> str:
        """Return the text, for the call that needs it; never keep, log or format the result."""
        return self._text

    def __repr__(self) -> str:
        return MASK

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Secret) and self._text == other._text

    def __hash__(self) -> int:
        return hash(self._text)

    @classmethod
    def __get_pydantic_core_schema__(cls, source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        """Accept a non-empty string without line ends, or a secret; write `***`."""
        from_text = core_schema.no_info_after_validator_function(cls._checked, core_schema.str_schema(min_length=1))
        return core_schema.json_or_python_schema(
            json_schema=from_text,
            python_schema=core_schema.lax_or_strict_schema(
                lax_schema=core_schema.no_info_before_validator_function(
                    lambda value: value.reveal() if isinstance(value, Secret) else value, from_text
                ),
                strict_schema=from_text,
            ),
            serialization=core_schema.plain_serializer_function_ser_schema(lambda _: MASK, when_used="json"),
        )

    @classmethod
    def _checked(cls, text: str) -> Secret:
        secret = cls(text)
        if _CONTROL.search(text):
            raise ValueError(
                "a line end or control character is part of it; if it comes from a variable or a file, write it there"
                " without (printf '%s', not echo)"
            )
        return secret
