"""The `storage` section of the file."""

from __future__ import annotations

import re
from datetime import timedelta
from typing import Annotated, Literal

from pydantic import AfterValidator, Field, ValidationInfo, model_validator

from .duration import PositiveDuration
from .errors import got
from .fields import DsnField, Model, Number, context_of
from .secret import Secret

__all__ = ["Storage"]


def _schema_name(value: str) -> str:
    if not re.fullmatch(r"(?!pg_)[a-z_][a-z0-9_]{0,62}", value):
        raise ValueError(
            f"expected up to 63 lower-case letters, digits and '_', no digit and no 'pg_' first, got {got(value)}"
        )
    return value


class Storage(Model):
    """Where events and deliveries are kept."""

    dsn: DsnField = Field(description="`postgresql://…` or `sqlite:///…`, in any spelling people paste.")
    password: Secret | None = Field(
        default=None, description="Password, apart from the DSN, where nothing of it has to be encoded."
    )
    tls: Literal["optional", "required", "verify-ca", "verify-full"] = Field(
        default="optional",
        description="Least that TLS has to be: `required`, `verify-ca`, `verify-full`; `optional`: what the DSN says.",
    )
    schema_name: Annotated[str, AfterValidator(_schema_name)] | None = Field(
        default=None,
        alias="schema",
        description="PostgreSQL schema of the tables; null is the first of the search path that has them, or else its"
        " first.",
    )
    pool: Number = Field(default=5, ge=1, le=500, description="Connections to the database, per process.")
    start_timeout: PositiveDuration = Field(
        default=timedelta(seconds=30),
        description="How long a start waits for a database that is down (exit 69).",
    )
    migrate: bool = Field(default=True, description="Bring the tables up to date at every start.")
    pgbouncer: bool = Field(default=False, description="The DSN leads through pgbouncer in transaction mode.")

    @model_validator(mode="after")
    def _complete(self, info: ValidationInfo) -> Storage:
        if self.dsn.scheme == "sqlite":
            return self._of_sqlite()
        dsn = self.dsn.completed(password=self.password, tls=self.tls, environ=context_of(info).environ)
        if self.pgbouncer and "options" in dsn.server_settings:
            raise ValueError(
                "pgbouncer: in transaction mode it passes no options on; remove them from the DSN, and use schema for a"
                " search_path, or ALTER ROLE … SET for the rest"
            )
        return self if dsn == self.dsn else self.model_copy(update={"dsn": dsn})

    def _of_sqlite(self) -> Storage:
        if self.schema_name is not None:
            raise ValueError("schema: SQLite has no schemas; leave it out, and give each deployment its own file")
        for name, given in (
            ("password", self.password),
            ("tls", self.tls != "optional"),
            ("pgbouncer", self.pgbouncer),
        ):
            if given:
                raise ValueError(f"{name}: SQLite has none; leave it out")
        return self
