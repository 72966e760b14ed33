from __future__ import annotations

import time
from collections.abc import Mapping
from pathlib import Path

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from runner.config import source as source_module
from runner.config.source import MAX_BYTES, Source, parse_source
from runner.config.substitution import Substitution


def parse(text: str | bytes, environ: Mapping[str, str] | None = None, base: Path = Path()) -> Source:
    return parse_source(text.encode() if isinstance(text, str) else text, Substitution(environ or {}, base))


def faults(text: str | bytes) -> list[str]:
    return [fault.line("f") for fault in parse(text).faults]


def test_plain_values() -> None:
    source = parse("a: text\nb: 5\nc: -1.5\nd: [yes, false, null, ~, .inf]\ne: {f: '5'}\ng: 2024-01-01\nh: !!str 5\n")
    assert source.faults == []
    assert source.value == {
        "a": "text",
        "b": 5,
        "c": -1.5,
        "d": [True, False, None, None, float("inf")],
        "e": {"f": "5"},
        "g": "2024-01-01",
        "h": "5",
    }


def test_positions_count_from_one_and_in_characters() -> None:
    source = parse("# é\na:\n  - {b: 1, é: 2, c: 3}\n")
    assert source.positions[("a",)] == (2, 1)
    assert source.positions[("a", 0)] == (3, 5)
    assert source.positions[("a", 0, "c")] == (3, 18)
    assert source.position(("a", 0, "c", "not", "there")) == (3, 18)


def test_a_duplicate_key_moves_nothing() -> None:
    source = parse("a: {b: 1, c: 2}\na:\n  c: 3\n")
    assert source.value == {"a": {"b": 1, "c": 2}}
    assert source.positions[("a", "c")] == (1, 11)


ALPHANUMERIC = "did not find expected alphabetic or numeric character"
NO_TOKEN = "found character that cannot start any token"
UNQUOTED = [
    ("types: [*]", "1:10", ALPHANUMERIC, "*"),
    ("types: *", "1:9", ALPHANUMERIC, "*"),
    ("types:\n  - *", "2:6", ALPHANUMERIC, "*"),
    ("types: [order.*, *]", "1:19", ALPHANUMERIC, "*"),
    ("types: [*.created]", "1:10", ALPHANUMERIC, "*"),
    ("a: [&]", "1:6", ALPHANUMERIC, "&"),
    ("a: @x", "1:4", NO_TOKEN, "@"),
    ("a: [`x`]", "1:5", NO_TOKEN, "`"),
    ("a: %x", "1:4", NO_TOKEN, "%"),
    ("a: > x", "1:6", "did not find expected comment or line break", ">"),
    ("a: [!x]", "1:7", "did not find expected whitespace or line break", "!"),
]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("a: 1\nb: 2\na: 3", "f:3:1: a: duplicate key; it is given in line 1 already"),
        ("a: &x 1", "f:1:4: a: anchors (&name) are not supported; write the value out where it is needed"),
        (
            "a: *x",
            "f:1:4: a: aliases (*name) are not supported; write the value out, or quote a text that starts with '*'",
        ),
        (
            "a: [*created]",
            "f:1:5: a[0]: aliases (*name) are not supported; write the value out, or quote a text that starts with '*'",
        ),
        *(
            (text, f"f:{place}: not YAML: {problem}; a text that starts with {first!r} has to be quoted")
            for text, place, problem, first in UNQUOTED
        ),
        ("a: {<<: {b: 1}}", "f:1:5: a: merge keys (<<) are not supported; write the values out"),
        ("a: !!python/name:os.system x", "f:1:4: a: tags (!name) are not supported; quote a text that begins with '!'"),
        ("a: !!python/tuple [1]", "f:1:4: a: tags (!name) are not supported; quote a text that begins with '!'"),
        ("a: !!binary aGk=", "f:1:4: a: tags (!name) are not supported; quote a text that begins with '!'"),
        ("a: 1\n---\nb: 2", "f:2:1: a second document starts here; expected one"),
        ("no: 1", "f:1:1: expected text as a key; YAML reads this one as something else: quote it"),
        ("a: {1: 2}", "f:1:5: a: expected text as a key; YAML reads this one as something else: quote it"),
        ("? [a]\n: 1", "f:1:3: expected text as a key"),
        ("a: 010", "f:1:4: a: YAML reads this number as another one than you do; write a decimal number, or quote it"),
        ("a: 1:30", "f:1:4: a: YAML reads this number as another one than you do; write a decimal number, or quote it"),
        ("a: b: c", "f:1:5: not YAML: mapping values are not allowed in this context"),
        ("a: {b: 1\nc: {}", "f:2:2: not YAML: did not find expected ',' or '}' for what begins in line 1"),
        ("a: 'b\nc: d\n", "f:3:1: not YAML: found unexpected end of stream for what begins in line 1"),
        ("a:\n\t- x", "f:2:1: not YAML: found character that cannot start any token; indent with spaces, not tabs"),
        ("a: [${X}]", "f:1:6: not YAML: did not find expected ',' or ']'; quote \"${…}\" inside [ ] and { }"),
        ("a: 1\nb: \x00", "f:2:4: the character U+0000 is not allowed in YAML"),
    ],
)
def test_one_fault(text: str, expected: str) -> None:
    assert faults(text) == [expected]


def test_not_utf8() -> None:
    assert faults(b"a: 1\nb: \xff\n") == ["f:2:4: not UTF-8: byte 0xff"]
    assert faults("a: é".encode("utf-16")) == ["f:1:1: not UTF-8: byte 0xff"]


def test_a_byte_order_mark_is_no_part_of_the_first_key() -> None:
    assert parse(b"\xef\xbb\xbfa: 1").value == {"a": 1}


@pytest.mark.parametrize(
    "bomb",
    [
        "[" * 5000,
        "a: " + "{a: " * 5000,
        "\n".join(" " * depth + "a:" for depth in range(500)),
        "a: &a [1,1]\n" + "\n".join(f"a{n}: &a{n} [{', '.join(['*a'] * 50)}]" for n in range(300)),
        "a: &a {b: 1}\n" + "\n".join(f"a{n}: {{<<: [{', '.join(['*a'] * 50)}]}}" for n in range(300)),
        "a" * (MAX_BYTES + 1),
    ],
)
def test_bombs_end_early(bomb: str) -> None:
    started = time.process_time()
    assert parse(bomb).faults
    assert time.process_time() - started < 1


def test_depth_is_named_with_its_place() -> None:
    assert faults("a: " + "[" * 40) == ["f:1:36: a[0][0]: nested deeper than 32"]


def test_the_pure_python_parser_reads_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    text = "a: [1, {b: 'c'}]\nd: &x 010\ne: ${X}\na: 2\n"
    fast = parse(text, {"X": "1"})
    monkeypatch.setattr(source_module, "_Loader", yaml.SafeLoader)
    slow = parse(text, {"X": "1"})
    assert (slow.value, slow.positions, slow.faults) == (fast.value, fast.positions, fast.faults)


# --- substitution ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("${SET}", "value"),
        ("a-${SET}-${SET}", "a-value-value"),
        ("${UNSET:-default}", "default"),
        ("${EMPTY:-default}", "default"),
        ("${UNSET:-}", ""),
        ("${EMPTY}", ""),
        ("${SET:?needed}", "value"),
        ("$${SET}", "${SET}"),
        ("$$", "$"),
        ("cost: 5$ $SET $(date)", "cost: 5$ $SET $(date)"),
        ("${NESTED}", "${SET}"),
    ],
)
def test_substitution(text: str, expected: str) -> None:
    environ = {"SET": "value", "EMPTY": "", "NESTED": "${SET}"}
    assert Substitution(environ, Path()).apply(text) == expected


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("${X}", "environment variable X is not set; set it, or give a default: ${X:-default}"),
        ("${X:?one per environment}", "environment variable X is not set: one per environment"),
        ("${EMPTY:?needed}", "environment variable EMPTY is empty: needed"),
        ("${X", "'${' is never closed; write $${ for the two characters themselves"),
        ("${}", "expected ${VAR}, ${VAR:-default}"),
        ("${X-default}", "expected ${VAR}, ${VAR:-default}"),
        ("${X:-${SET}}", "not nested"),
        ("${file:nothing/here}", "file 'nothing/here' cannot be read: No such file or directory"),
        ("${file:/}", "file '/' cannot be read: Is a directory"),
        ("${file:a\0b}", "cannot be read: no valid path"),
    ],
)
def test_substitution_faults(text: str, expected: str) -> None:
    with pytest.raises(ValueError) as caught:
        Substitution({"EMPTY": "", "SET": "value"}, Path()).apply(text)
    assert expected in str(caught.value)


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("a: ${X:-}", {}),
        ("a: ${EMPTY:-}", {}),
        ("a: '${X:-}${EMPTY:-}'\nb: 1", {"b": 1}),
        ("a: {b: '${X:-}', c: 1}", {"a": {"c": 1}}),
        ("a: ['${X:-}', 1, '${EMPTY:-}', {b: 2}]", {"a": [1, {"b": 2}]}),
        ("a: ${X:-null}", {"a": None}),
        ("a: ${EMPTY:-~}", {"a": None}),
        ("a: ['${X:-null}']", {"a": [None]}),
        ("a: ${SET:-null}", {"a": "null"}),
        ("a: '-${X:-null}-'", {"a": "-null-"}),
        ("a: '-${X:-}-'", {"a": "--"}),
        ("a: ''", {"a": ""}),
        ("${X:-}", None),
    ],
)
def test_a_value_that_nothing_is_given_for_is_left_out(text: str, value: object) -> None:
    source = parse(text, {"EMPTY": "", "SET": "null"})
    assert (source.value, source.faults) == (value, [])


def test_what_is_left_out_moves_nothing_and_is_remembered() -> None:
    source = parse("a: ${X:-}\nb:\n  - ${X:-}\n  - 5\na: 1\n")
    assert source.left_out[("a",)] == "nothing is given by ${X:-}"
    assert source.positions[("b", 0)] == (4, 5)
    assert [fault.line("f") for fault in source.faults] == ["f:5:1: a: duplicate key; it is given in line 1 already"]


def test_an_empty_variable_without_a_default_is_a_fault() -> None:
    cure = "environment variable X is empty; write ${X:-} where it may be, to leave the key out"
    assert [each.line("f") for each in parse("a: '${X}'", {"X": ""}).faults] == [f"f:1:1: a: {cure}"]
    assert parse("a: 'x${X}'", {"X": ""}).value == {"a": "x"}


def test_a_fault_names_path_and_variable() -> None:
    assert faults("a:\n  - b: '${MISSING}'") == [
        "f:2:5: a[0].b: environment variable MISSING is not set; set it, or give a default: ${MISSING:-default}"
    ]


def test_files_are_relative_to_the_configuration(tmp_path: Path) -> None:
    (tmp_path / "secret").write_text("two\nlines\r\n")
    assert parse("a: ${file:secret}", {}, tmp_path).value == {"a": "two\nlines"}


def test_files_are_bounded_and_text(tmp_path: Path) -> None:
    (tmp_path / "large").write_bytes(b"x" * 70_000)
    (tmp_path / "binary").write_bytes(b"\xff")
    found = parse("a: ${file:large}\nb: ${file:binary}", {}, tmp_path).faults
    assert [fault.message for fault in found] == [
        "file 'large' is larger than 64 KiB",
        "file 'binary' is not UTF-8 text",
    ]


@settings(deadline=None)
@given(st.text(min_size=1))
def test_what_comes_from_outside_never_changes_the_document(value: str) -> None:
    source = parse("a: ${X}\nb: {c: '-${X}-'}\n${X}: key", {"X": value})
    assert source.value == {"a": value, "b": {"c": f"-{value}-"}, "${X}": "key"}
    assert source.faults == []


@settings(deadline=None)
@given(st.binary(max_size=200))
def test_bytes_never_raise(content: bytes) -> None:
    source = parse(content)
    assert all("\n" not in fault.line("f") for fault in source.faults)


SPACED = ["\n", "  ", ": ", "- ", "? ", "&x ", "<<: ", "!t ", "!!int ", "---\n", "...\n", "\t", "%YAML 1.1\n"]
SHORT = """a b : { } [ ] , *x ' " | # 1 0x1 1:30 yes ~ .nan ${X} ${ $$ é"""
YAML_PIECES = st.sampled_from([*SPACED, *SHORT.split()])


@settings(deadline=None)
@given(st.lists(YAML_PIECES, max_size=30).map("".join))
def test_yaml_like_text_never_raises(text: str) -> None:
    source = parse(text, {"X": "x"})
    assert all(line >= 1 and column >= 1 for line, column in source.positions.values())
    assert all("\n" not in fault.line("f") for fault in source.faults)
