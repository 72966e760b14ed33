"""Functions and classes that a configuration names: `module:function`."""

from __future__ import annotations

import builtins
import importlib
import os
import re
import sys
from collections.abc import Callable
from typing import Any

from .errors import quoted, spend, suggestion

__all__ = ["import_callable", "import_exception", "is_reference"]

_REFERENCE = re.compile(r"([A-Za-z_]\w*(?:\.[A-Za-z_]\w*)*):([A-Za-z_]\w*(?:\.[A-Za-z_]\w*)*)\Z")

_FAILED = 100  # the cost of looking for a missing module, in comparisons of words

_EXCEPTIONS = {
    name: each for name, each in vars(builtins).items() if isinstance(each, type) and issubclass(each, Exception)
}


def is_reference(text: str) -> bool:
    """Return whether `text` has the form `module:name`."""
    return _REFERENCE.match(text) is not None


def import_callable(reference: str) -> Callable[..., Any]:
    """
    Import `module:name`; modules of the working directory are found after all others.

    Raises:
        ValueError: the reference is malformed, cannot be imported, does not exist, or cannot be called.
    """
    found = _REFERENCE.match(reference)
    if not found:
        raise ValueError(f"expected module:function, such as acme.audit:handle, got {quoted(reference)}")
    target: Any = _module(found[1])
    path = found[1]
    for name in found[2].split("."):
        if not hasattr(target, name):
            hint = suggestion(name, [known for known in dir(target) if not known.startswith("_")])
            raise ValueError(f"{quoted(path)} has no {quoted(name)}{hint}")
        target, path = getattr(target, name), f"{path}.{name}"
    if not callable(target):
        raise ValueError(f"{quoted(reference)} is {_article(type(target).__name__)}, expected something to call")
    return target  # type: ignore[no-any-return]  # callable() narrows Any to no signature


def import_exception(reference: str) -> type[Exception]:
    """
    Return a built-in exception, or the one named by `module:Class`.

    Raises:
        ValueError: it does not import, or is no exception.
    """
    found = import_callable(reference) if ":" in reference else _EXCEPTIONS.get(reference)
    if isinstance(found, type) and issubclass(found, Exception):
        return found
    hint = suggestion(reference, _EXCEPTIONS)
    raise ValueError(f"expected an exception, such as ValueError or acme.errors:Bad, got {quoted(reference)}{hint}")


def _module(name: str) -> Any:
    directory = os.getcwd()
    if directory not in sys.path:
        sys.path.append(directory)  # last: a json.py there must not replace the standard module
    try:
        if spend(0):
            return importlib.import_module(name)
    except ImportError as error:
        spend(_FAILED)
        reason = " ".join(str(error).split())
        raise ValueError(f"cannot import {quoted(name)}: {reason}") from error.with_traceback(None)
    except (Exception, SystemExit) as error:
        # Foreign code may raise anything, and the text of its exception may hold data.
        reason = f"it raised {type(error).__name__}; python -c 'import {name}' shows where"
        raise ValueError(f"cannot import {quoted(name)}: {reason}") from error
    raise ValueError(f"{quoted(name)} was not imported, because there were too many faults")


def _article(name: str) -> str:
    return f"an {name}" if name[0] in "aeiou" else f"a {name}"
