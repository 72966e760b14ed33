"""The sink that calls a Python function."""

from __future__ import annotations

import functools
import inspect
import itertools
from collections.abc import Awaitable, Callable, Sequence
from typing import Annotated, Any

from pydantic import AfterValidator, Field, ValidationInfo
from typing_extensions import override

from ..config.callables import import_callable, import_exception, is_reference
from ..config.errors import got
from ..config.fields import context_of
from ..config.plugin import Options
from ..delivery import ACCEPTED, Accepted, Deferred, Delivery, Failed, Outcome, Rejected
from ..errors import SinkError, described
from .base import SinkContext
from .threads import Threads

__all__ = ["PythonOptions", "PythonSink"]


def _importable(target: str, info: ValidationInfo) -> str:
    if context_of(info).imports:
        import_callable(target)
    elif not is_reference(target):
        raise ValueError(f"expected module:function, such as acme.audit:handle, got {got(target)}")
    return target


def _exception_name(name: str, info: ValidationInfo) -> str:
    if context_of(info).imports or ":" not in name:
        import_exception(name)
    elif not is_reference(name):
        raise ValueError(f"expected an exception, such as ValueError or acme.errors:Bad, got {got(name)}")
    return name


class PythonOptions(Options):
    """Call a Python function."""

    main = "target"
    batches = True
    uniform = True

    target: Annotated[str, AfterValidator(_importable)] = Field(
        description="`module:function`; modules of the working directory are found too."
    )
    permanent: tuple[Annotated[str, AfterValidator(_exception_name)], ...] = Field(
        default=(), description="Exceptions that no retry can help: `ValueError`, `acme.errors:Bad`."
    )

    @override
    def build(self, context: SinkContext) -> PythonSink:
        return PythonSink(self.target, permanent=self.permanent)


class PythonSink:
    """
    Call `handler(event)`, or `handler(event, delivery)`, for each delivery.

    For a batch it is `handler(events)`, or `handler(events, deliveries)`, with lists.

    An `async def` runs on the event loop, anything else in one of `threads` threads. A handler that
    returns None or True has accepted the event, one that returns an `Outcome` has decided itself, one
    that raises has failed. A thread cannot be interrupted: a synchronous handler that outlives its
    subscription's timeout keeps its thread until it returns.
    """

    def __init__(self, target: str | Callable[..., Any], *, threads: int = 16, permanent: Sequence[str] = ()) -> None:
        """
        Import the handler and inspect its signature.

        Args:
            target: `module:function`, also from the working directory; or the function itself.
            threads: how many synchronous calls run at once.
            permanent: exceptions after which no further attempt is made: of Python, or `module:Class`.

        Raises:
            SinkError: something does not import, is no exception, or cannot be called with an event.
        """
        self._name = target if isinstance(target, str) else _name(target)
        handler = _imported(target) if isinstance(target, str) else target
        self._permanent = tuple(_exception(each) for each in permanent)
        self._threads = Threads(self._name, threads)
        self._wants_delivery = _wants_delivery(handler, self._name)
        self._handler: Callable[..., Awaitable[object]] = (
            handler if _is_async(handler) else functools.partial(self._threads.submit, handler)
        )
        self.deliver_event = None if self._wants_delivery else self._handler

    async def start(self) -> None:
        """Do nothing: threads start as they are needed."""

    async def deliver(self, delivery: Delivery) -> Outcome:
        """Call the handler; its exceptions propagate, unless they are permanent."""
        try:
            answer = await self._handler(*((delivery.event, delivery) if self._wants_delivery else (delivery.event,)))
        except BaseException as error:
            outcome = self.failure_of(error)
            if outcome is None:
                raise
            return outcome
        return self.outcome_of(answer)

    def outcome_of(self, answer: object) -> Outcome:
        """Return the outcome that an answer of the handler stands for."""
        return _outcome(answer)

    def failure_of(self, error: BaseException) -> Outcome | None:
        """Return the outcome of a handler that would end the process, or that no retry can help."""
        if isinstance(error, SystemExit):  # asyncio would end the whole process with it
            return Failed("handler called sys.exit()")
        return Rejected(described(error)) if isinstance(error, self._permanent) else None

    async def deliver_batch(self, deliveries: Sequence[Delivery]) -> Sequence[Outcome]:
        """Call the handler with lists. It answers with a list of outcomes, or with one for all of them."""
        events = [delivery.event for delivery in deliveries]
        try:
            answer = await self._handler(*((events, list(deliveries)) if self._wants_delivery else (events,)))
        except SystemExit:
            answer = Failed("handler called sys.exit()")
        except self._permanent as error:
            if len(events) > 1:
                raise  # each is retried alone, which shows the one at fault
            answer = Rejected(described(error))
        if isinstance(answer, list | tuple):
            return [_outcome(each) for each in answer]
        return [_outcome(answer)] * len(events)

    async def stop(self) -> None:
        """Let the threads end as their calls return; do not wait for them."""
        self._threads.close()


def _imported(reference: str) -> Callable[..., Any]:
    try:
        return import_callable(reference)
    except ValueError as error:
        raise SinkError(f"python: {error}") from error


def _exception(reference: str) -> type[Exception]:
    try:
        return import_exception(reference)
    except ValueError as error:
        raise SinkError(f"python: permanent: {error}") from error


def _wants_delivery(handler: Callable[..., Any], name: str) -> bool:
    """Return whether the handler takes the delivery: a required second parameter, or one of that name."""
    try:
        signature = inspect.signature(handler)
    except ValueError:  # some builtins have none
        return False
    second = next(itertools.islice(signature.parameters, 1, None), None)
    if _accepts(signature, 1) and not (second in ("delivery", "deliveries") and _accepts(signature, 2)):
        return False
    if _accepts(signature, 2):
        return True
    raise SinkError(f"python: {name}: expected handler(event) or handler(event, delivery), got handler{signature}")


def _accepts(signature: inspect.Signature, count: int) -> bool:
    try:
        signature.bind(*(None,) * count)
    except TypeError:
        return False
    return True


def _is_async(handler: Callable[..., Any]) -> bool:
    return inspect.iscoroutinefunction(handler) or inspect.iscoroutinefunction(getattr(handler, "__call__", None))  # noqa: B004  # the method itself is asked


def _outcome(answer: object) -> Outcome:
    if answer is None or answer is True:
        return ACCEPTED
    if isinstance(answer, Accepted | Failed | Rejected | Deferred):
        return answer
    if inspect.iscoroutine(answer):
        answer.close()
        return Failed("handler returned a coroutine; declare it with 'async def'")
    return Failed(f"handler returned {type(answer).__name__}, expected None, True or an outcome")


def _name(handler: Callable[..., Any]) -> str:
    return getattr(handler, "__qualname__", None) or type(handler).__qualname__
