"""The surface: everything that the routes of the HTTP interface work with."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Self

from .depths import DepthGauge
from .readiness import Readiness
from .tokens import Tokens, access_of

if TYPE_CHECKING:
    from ..bus.bus import EventBus
    from ..config.api import Api
    from ..operations import Operations
    from ..service.tally import Tally
    from ..service.vitals import Vitals
    from ..storage import Storage
    from .access import Access
    from .process import Process

__all__ = ["Surface"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Surface:
    """
    One runner, as its HTTP interface sees it.

    Attributes:
        options: the section `api` of the file, as it was at the start; its tokens may have changed since.
        access: is asked by every route but the probes before anything else.
        vitals: how this process is; `vitals.draining` ends streams.
        tally: what this process has counted.
        readiness: whether it can be given work.
        depths: how much waits in the store.
        process: what else its metrics report.
    """

    options: Api
    deployment_id: str
    bus: EventBus
    operations: Operations
    storage: Storage
    access: Access
    vitals: Vitals
    tally: Tally
    readiness: Readiness
    depths: DepthGauge
    process: Process

    def change(self, options: Api) -> None:
        """Admit by the tokens of `options` from now on; this does not change whether a token is needed."""
        if isinstance(self.access, Tokens) and options.tokens:
            self.access.replace(options.tokens)

    @classmethod
    def of(
        cls,
        options: Api,
        deployment_id: str,
        bus: EventBus,
        operations: Operations,
        storage: Storage,
        process: Process,
    ) -> Self:
        """Return the surface of a runner that is made of these."""
        return cls(
            options=options,
            deployment_id=deployment_id,
            bus=bus,
            operations=operations,
            storage=storage,
            access=access_of(options),
            vitals=process.vitals,
            tally=process.tally,
            readiness=Readiness(storage.at_head),
            depths=DepthGauge(storage.depths.read),
            process=process,
        )
