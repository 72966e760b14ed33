"""A configuration is read in 5 seconds and 200 MB, or refused, whoever wrote it."""

from __future__ import annotations

import os
import resource
import time
import warnings
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from runner.config import load_config
from runner.config.source import MAX_BYTES
from runner.errors import ConfigError

HEAD = "deployment_id: d\nstorage: {dsn: 'sqlite:///x.db'}\n"
SINK = "sinks: {a: stdout}\n"
MEGABYTES = 200
SECONDS = 5


def many(line: Callable[[int], str], count: int, *, between: str = "") -> str:
    return between.join(line(number) for number in range(count))


def subscriptions(line: Callable[[int], str], count: int) -> str:
    return "subscriptions:\n" + many(lambda n: f"- {{name: n{n}, {line(n)}}}\n", count)


SHAPES = {
    "sinks and subscriptions": lambda: (
        "sinks:\n" + many(lambda n: f"  s{n:05}: stdout\n", 8000) + subscriptions(lambda n: f"sink: s{n:05}", 8000)
    ),
    "misspelt sinks": lambda: (
        "sinks:\n" + many(lambda n: f"  s{n:05}: stdout\n", 8000) + subscriptions(lambda n: f"sink: x{n:05}", 8000)
    ),
    "misspelt sinks of few": lambda: (
        "sinks:\n" + many(lambda n: f"  s{n:05}: stdout\n", 400) + subscriptions(lambda n: f"sink: x{n:05}", 12000)
    ),
    "misspelt keys": lambda: SINK + subscriptions(lambda n: "sink: a, typos: 1", 12000),
    "misspelt kinds": lambda: "sinks:\n" + many(lambda n: f"  s{n}: stdoot{n}\n", 40000),
    "misspelt exceptions": lambda: (
        "sinks: {a: {python: {target: 'json:dumps', permanent: [" + many(lambda n: f"Foo{n},", 49000) + "]}}}\n"
    ),
    "misspelt functions": lambda: "sinks:\n" + many(lambda n: f"  s{n}: {{python: 'json:dump{n}'}}\n", 24000),
    "modules that are not there": lambda: "sinks:\n" + many(lambda n: f"  s{n}: 'no{n}:f'\n", 40000),
    "unknown keys": lambda: many(lambda n: f"key{n}: 1\n", 49000),
    "duplicate keys": lambda: "a: 1\n" * 200_000,
    "one name for all": lambda: SINK + "subscriptions:\n" + "- {name: a, sink: a}\n" * 16000,
    "bad types": lambda: SINK + subscriptions(lambda n: "sink: a, types: ['a b', 'c d']", 9000),
    "bad headers": lambda: (
        "sinks: {a: {webhook: {url: 'https://h', headers: {" + many(lambda n: f"h{n}: 1,", 49000) + "}}}}\n"
    ),
    "bad waits": lambda: "retry: {schedule: [" + "1x," * 49000 + "]}\n",
    "bad zones": lambda: (
        "schedules:\n"
        + many(lambda n: f"- {{name: a{n}, cron: '0 2 * * *', timezone: Europe/P{n}, event: {{type: t}}}}\n", 3000)
    ),
    "variables in one value": lambda: "subject: '" + "${V}" * 100_000 + "'\n",
    "large variables in one value": lambda: "subject: '" + "${LARGE}" * 100_000 + "'\n",
    "variables in all values": lambda: "x: [" + many(lambda n: f"'{n}${{V}}',", 49000) + "]\n" + "y: 1\n" * 3,
    "variables and faults": lambda: "sinks:\n" + many(lambda n: f"  s{n}: 'x{n}${{V}}'\n", 24000),
    "unset variables": lambda: "x: [" + "'${UNSET}'," * 80_000 + "]\n",
    "hosts": lambda: "strategies: [{postgres: 'postgresql://" + many(lambda n: f"h{n},", 100_000) + "h/b'}]\n",
    "values": lambda: "x: [" + "1," * 500_000 + "]\n",
    "nests": lambda: "x: [" + ("[" * 25 + "]" * 25 + ",") * 19_000 + "]\n",
    "depth": lambda: "x: " + "[" * 500_000,
    "anchors": lambda: "x: [" + "&a 1," * 150_000 + "]\n",
    "one long duration": lambda: "worker: {lease: " + "1h" * 400_000 + "}\n",
    "one long key": lambda: "x: {? " + "k" * 900_000 + "\n : 1}\n",
    "one long number": lambda: "worker: {batch: " + "1" * 900_000 + "}\n",
}


def load_or_refuse(path: Path) -> int:
    """Return the characters of the faults."""
    try:
        load_config(path, {"V": "value", "LARGE": "x" * 10_000})
    except ConfigError as error:
        return len(str(error))
    return 0


@pytest.mark.parametrize("shape", SHAPES)
def test_time_and_memory_are_bounded(tmp_path: Path, shape: str) -> None:
    path = tmp_path / "f.yaml"
    path.write_text(HEAD + SHAPES[shape]())
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # of threads: the child starts none, and waits for none
        child = os.fork()
    if child == 0:
        resource.setrlimit(resource.RLIMIT_CPU, (2 * SECONDS, 2 * SECONDS))
        os._exit(0 if load_or_refuse(path) < 100_000 else 1)
    _, status, usage = os.wait4(child, 0)
    assert status == 0, "too many words, or too much time"
    assert usage.ru_utime + usage.ru_stime < SECONDS
    assert (usage.ru_maxrss - before) // 1024 < MEGABYTES - 40  # what an interpreter with the schema has anyway


PIECES = st.sampled_from([*"[]{},:-\n #'\"|>?&*!%@`", "- ", ": ", "\n  ", "${V}", "a", "s: ", "{x: ", "sink: a, ", "1"])


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None, max_examples=15)
@given(start=st.lists(PIECES, max_size=8).map("".join), repeated=st.lists(PIECES, min_size=1, max_size=8).map("".join))
def test_what_is_repeated_to_the_end_costs_no_more(tmp_path: Path, start: str, repeated: str) -> None:
    path = tmp_path / "f.yaml"
    path.write_text((HEAD + start + repeated * (MAX_BYTES // len(repeated)))[:MAX_BYTES])
    began = time.process_time()
    assert load_or_refuse(path) < 100_000
    assert time.process_time() - began < SECONDS


def test_of_many_faults_the_first_are_told_and_the_rest_is_counted(tmp_path: Path) -> None:
    path = tmp_path / "f.yaml"
    path.write_text(HEAD + "sinks:\n" + many(lambda n: f"  s{n}: stdot\n", 5000))
    with pytest.raises(ConfigError) as caught:
        load_config(path, {})
    assert len(caught.value.faults) == 101
    assert caught.value.faults[-1] == f"{path}: … and 4900 more faults"
    assert f"{path}:4:3: sinks.s0: unknown kind 'stdot'" in caught.value.faults[0]
    assert "did you mean 'stdout'" in caught.value.faults[99]
