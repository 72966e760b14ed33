"""Keep the secrets of this process out of everything that is written or printed."""

from __future__ import annotations

import base64
import contextlib
import html
import json
import re
import threading
from collections import Counter
from collections.abc import Iterator
from contextvars import ContextVar
from urllib.parse import quote, quote_plus

__all__ = ["MASK", "forget", "gathered", "know", "looks_secret", "redacted"]

MASK = "***"
"""The text in place of a secret, whatever its length."""

_SHORTEST = 6  # characters: what is shorter stands in every other word, and hiding it would tell where

# What the bus says itself: as a password it protects nothing, and hiding it would garble everything.
_WORDS = frozenset({"runner", "postgres", "postgresql", "password", "secret", "default", "application/json"})

_TOKEN = re.compile(r"(?=.*[0-9])(?=.*[A-Za-z])[A-Za-z0-9_+/=~-]{16,}", re.ASCII)

_changing = threading.Lock()  # a file is read in a thread while the event loop renews tokens
_known: Counter[str] = Counter()  # how often each was registered, and not forgotten since
_spelling_counts: Counter[str] = Counter()  # of how many of these each is a spelling
_GATHERED: ContextVar[list[str] | None] = ContextVar("gathered", default=None)
_spellings: tuple[str, ...] = ()  # the longest first, because one may be part of another; replaced as a whole


def know(secret: str, *, public: tuple[str | None, ...] = ()) -> None:
    """
    Register a secret, to be hidden in all its encodings.

    Args:
        public: what stands in the open beside it. A password that is the name of its user hides nothing.
    """
    global _spellings
    secret = secret.strip()
    if len(secret) < _SHORTEST or secret in _WORDS or secret in public:
        return
    if (gathered := _GATHERED.get()) is not None:
        gathered.append(secret)
    spelled = set(_spelled(secret))
    with _changing:
        _known[secret] += 1
        if _known[secret] == 1:
            _spelling_counts.update(spelled)
        if secret not in _spellings:
            _spellings = tuple(sorted({*spelled, *_spellings}, key=len, reverse=True))


def forget(secret: str) -> None:
    """
    Take back one `know()`: of tokens that are renewed there is no end.

    What was registered elsewhere as well stays hidden.
    """
    global _spellings
    secret = secret.strip()
    with _changing:
        if secret not in _known:
            return
        _known[secret] -= 1
        if _known[secret] > 0:
            return
        del _known[secret]
        theirs = set(_spelled(secret))
        _spelling_counts.subtract(theirs)
        gone = {each for each in theirs if _spelling_counts[each] <= 0}
        for each in gone:
            del _spelling_counts[each]
        _spellings = tuple(each for each in _spellings if each not in gone)


@contextlib.contextmanager
def gathered() -> Iterator[list[str]]:
    """Yield a list of what is registered meanwhile in this context, for `forget()`."""
    learnt: list[str] = []
    token = _GATHERED.set(learnt)
    try:
        yield learnt
    finally:
        _GATHERED.reset(token)


def looks_secret(word: str) -> bool:
    """Return whether a word looks like a token: long, of letters and digits, and no more than that."""
    return _TOKEN.fullmatch(word) is not None


def redacted(text: str, *, cut: bool = False) -> str:
    """
    Return the text with `***` in place of every secret this process knows.

    Args:
        cut: the text may end in the middle of one.
    """
    for spelling in _spellings:
        if spelling in text:
            text = text.replace(spelling, MASK)
    if cut:
        begun = max((_begun(text, spelling) for spelling in _spellings), default=0)
        text = text[: len(text) - begun] + MASK if begun else text
    return text


def _begun(text: str, spelling: str) -> int:
    """Return how many characters at the end of the text begin `spelling`; 0 if very few."""
    beginning, tail = spelling[:_SHORTEST], text[max(0, len(text) - len(spelling) + 1) :]
    at = tail.find(beginning)
    while at >= 0:
        if spelling.startswith(tail[at:]):
            return len(tail) - at
        at = tail.find(beginning, at + 1)
    return 0


def _spelled(secret: str) -> Iterator[str]:
    """Yield the encodings of a secret: plain, URL, JSON, Python, HTML, Base64."""
    yield secret
    for encoded in (quote(secret, safe=""), quote(secret), quote_plus(secret)):
        yield encoded
        yield re.sub(r"%[0-9A-F]{2}", lambda found: found[0].lower(), encoded)
    for escaped in (json.dumps(secret), json.dumps(secret, ensure_ascii=False), repr(secret)):
        yield escaped[1:-1]
        yield json.dumps(escaped[1:-1])[1:-1]  # and once more, in a log line of JSON that quotes it
    yield html.escape(secret)
    yield secret.encode("unicode_escape").decode()
    yield from _within_base64(secret.encode())


def _within_base64(secret: bytes) -> Iterator[str]:
    """Yield the part of Base64 that depends on the secret alone, at each of the three offsets."""
    for before in range(3):
        encoded = base64.b64encode(bytes(before) + secret + bytes(-(before + len(secret)) % 3)).decode()
        begin = -(-before * 8 // 6)
        end = (before + len(secret)) * 8 // 6
        inside = encoded[begin:end]
        if len(inside) >= _SHORTEST:
            yield inside
            yield inside.replace("+", "-").replace("/", "_")
