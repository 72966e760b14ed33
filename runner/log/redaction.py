"""Redact the secrets of this process in everything that is written or printed."""

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

_SHORTEST = 6  # characters; a shorter secret occurs within ordinary words, and hiding it would reveal it

# Words of the bus itself: they protect nothing as a password, and hiding them would garble everything.
_WORDS = frozenset({"runner", "postgres", "postgresql", "password", "secret", "default", "application/json"})

# The words of the log. Others choose secrets, too, and a secret such as `warning` must not blind the log.
_SAID = (
    "action addresses after again as audit back be blocked breaker bring brought by cancelled cannot cause "
    "changes channel claim clock closed concern configuration connected connection count critical database date "
    "dead debug delivered deliveries delivering delivery deployment depths destination detail did differs digest "
    "dispatch does dropped ended ends error event events exception expired failed failures fault fetched first "
    "for given goes grace half has hears id in info insecure instance is it last late lease leased left level "
    "line lined listen listening listens loaded log logger loop lost made measured missed nats no nobody not "
    "oauth occurrence odd of on open opened out outcome part path paused pending postgres prune pruned read ready "
    "reason refused reloaded removed renewed request retired retry revisions running schedule seconds seq server "
    "serves set settle settlement settlements settling should signal signals sink skipped sqlite stack started "
    "starting stop stopped stopping store strategy stream subject subjects subscription subscriptions tables "
    "takes task the ticks timestamp tls to token tries trip unknown unreachable up version waiting warning "
    "watcher what would "
)
_SAYING = re.compile(r'[a-z ":,{}\[\]=_.-]+', re.ASCII)
_TIME = re.compile(r"[0-9:.-]{6,11}|20[0-9]{2}-[0-9TZ:.-]+")  # as a secret it would hide the time of every line

_TOKEN = re.compile(r"(?=.*[0-9])(?=.*[A-Za-z])[A-Za-z0-9_+/=~-]{16,}", re.ASCII)

_changing = threading.RLock()  # files are read in a thread while the loop renews tokens, and a signal handler may log
_known: Counter[str] = Counter()  # registrations of each that were not forgotten
_spelling_counts: Counter[str] = Counter()  # the number of secrets with each spelling
_GATHERED: ContextVar[list[str] | None] = ContextVar("gathered", default=None)
# longest first, because one may be part of another; the tuple is replaced, never changed
_spellings: tuple[str, ...] = ()
_learnt: set[str] = set()  # spellings not yet among these: sorting for each secret would take too long


def know(secret: str, *, public: tuple[str | None, ...] = ()) -> None:
    """
    Register a secret, to be hidden in all its encodings.

    Args:
        public: text shown beside it. A password that equals the name of its user is not hidden.
    """
    secret = secret.strip()
    if len(secret) < _SHORTEST or secret in _WORDS or secret in public or _is_said(secret):
        return
    if (gathered := _GATHERED.get()) is not None:
        if _TIME.fullmatch(secret):
            return
        gathered.append(secret)
    spelled = set(_spelled(secret))
    with _changing:
        _known[secret] += 1
        if _known[secret] == 1:
            _spelling_counts.update(spelled)
        _learnt.update(spelled)


def _is_said(secret: str) -> bool:
    """Return whether it consists of words of the log, or parts of them, and separators."""
    words = re.findall("[a-z]+", secret) if _SAYING.fullmatch(secret) else []
    return bool(words) and all(word in _SAID for word in words)


def forget(*secrets: str) -> None:
    """
    Undo one `know()` of each, because renewed tokens would accumulate.

    A secret that is also registered elsewhere stays hidden.
    """
    global _spellings
    with _changing:
        gone = {spelling for secret in secrets for spelling in _taken_back(secret.strip())}
        if gone:
            _learnt.difference_update(gone)
            _spellings = tuple(each for each in _spellings if each not in gone)


def _taken_back(secret: str) -> set[str]:
    """Undo one `know()`, under the lock; return the spellings that belong to no other secret."""
    if secret not in _known:
        return set()
    _known[secret] -= 1
    if _known[secret] > 0:
        return set()
    del _known[secret]
    theirs = set(_spelled(secret))
    _spelling_counts.subtract(theirs)
    gone = {each for each in theirs if _spelling_counts[each] <= 0}
    for each in gone:
        del _spelling_counts[each]
    return gone


def _all_spellings() -> tuple[str, ...]:
    """Return every spelling, including new ones."""
    global _spellings
    if _learnt:
        with _changing:
            _spellings = tuple(sorted({*_spellings, *_learnt}, key=len, reverse=True))
            _learnt.clear()
    return _spellings


@contextlib.contextmanager
def gathered() -> Iterator[list[str]]:
    """Yield a list of the secrets registered in this context, for `forget()`."""
    learnt: list[str] = []
    token = _GATHERED.set(learnt)
    try:
        yield learnt
    finally:
        _GATHERED.reset(token)


def looks_secret(word: str) -> bool:
    """Return whether a word looks like a token: long, made of letters and digits only."""
    return _TOKEN.fullmatch(word) is not None


def redacted(text: str, *, cut: bool = False) -> str:
    """
    Return the text with `***` in place of every secret this process knows.

    Args:
        cut: the text may end in the middle of one.
    """
    spellings = _all_spellings()
    for spelling in spellings:
        if spelling in text:
            text = text.replace(spelling, MASK)
    if cut:
        begun = max((_begun(text, spelling) for spelling in spellings), default=0)
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
        yield json.dumps(escaped[1:-1])[1:-1]  # escaped twice, in a JSON log line that quotes it
    yield html.escape(secret)
    yield secret.encode("unicode_escape").decode()
    yield from _within_base64(secret.encode())


def _within_base64(secret: bytes) -> Iterator[str]:
    """Yield the part of its Base64 that depends on the secret only, at each of the three offsets."""
    for before in range(3):
        encoded = base64.b64encode(bytes(before) + secret + bytes(-(before + len(secret)) % 3)).decode()
        begin = -(-before * 8 // 6)
        end = (before + len(secret)) * 8 // 6
        inside = encoded[begin:end]
        if len(inside) >= _SHORTEST:
            yield inside
            yield inside.replace("+", "-").replace("/", "_")
