"""Files that hold one value: what editors and shells make of them."""

from __future__ import annotations

import os
import re
import stat
from pathlib import Path

import pytest

from runner.config.loader import load_config
from runner.config.value_file import read_value
from runner.errors import ConfigError

CONFIG = """\
deployment_id: shop
storage: {dsn: "sqlite:///x.db"}
strategies: [nats: {servers: ["nats://127.0.0.1:4222"], user: me, password: "${file:token}"}]
"""


@pytest.mark.parametrize(
    ("content", "value"),
    [
        (b"hunter2", "hunter2"),
        (b"hunter2\n", "hunter2"),
        (b"hunter2\r\n", "hunter2"),
        (b"\xef\xbb\xbfhunter2\r\n", "hunter2"),
        (b" hunter 2 \n", " hunter 2 "),
        (b"two\nlines\n", "two\nlines"),
        ("pässwörd\n".encode(), "pässwörd"),
        (b"x" * 65536, "x" * 65536),
    ],
)
def test_a_value_comes_without_what_editors_add(tmp_path: Path, content: bytes, value: str) -> None:
    (tmp_path / "token").write_bytes(content)
    assert read_value(tmp_path / "token") == value


@pytest.mark.parametrize(
    ("content", "fault"),
    [
        (b"", "is empty"),
        (b"\n", "is empty"),
        (b"\xef\xbb\xbf\r\n", "is empty"),
        (b"hunter2\0", "holds a NUL byte; expected text"),
        (b"hunter2\xff", "is not UTF-8 text"),
        ("hunter2\n".encode("utf-16"), "is UTF-16 text; save it as UTF-8"),
        (b"x" * 65537, "is larger than 64 KiB"),
    ],
)
def test_what_holds_no_value_is_refused_by_name(tmp_path: Path, content: bytes, fault: str) -> None:
    (tmp_path / "token").write_bytes(content)
    with pytest.raises(ValueError, match=re.escape(fault)):
        read_value(tmp_path / "token")
    (tmp_path / "runner.yaml").write_text(CONFIG)
    with pytest.raises(ConfigError) as caught:
        load_config(tmp_path / "runner.yaml", {})
    assert re.search(rf"strategies\[0\]\.nats\.password: file 'token' {re.escape(fault)}$", str(caught.value))
    assert "hunter2" not in str(caught.value)


def test_nothing_is_waited_for_and_nothing_without_an_end_is_read(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    for path in (tmp_path / "pipe", Path("/dev/zero")):
        with pytest.raises(ValueError, match="is a pipe or a device; expected a regular file"):
            read_value(path)


@pytest.mark.parametrize(
    ("path", "fault"),
    [
        ("nowhere", "cannot be read: No such file"),
        (".", "cannot be read: Is a directory"),
        ("loop", "cannot be read: Too many levels"),
        ("a\0b", "cannot be read: no valid path"),
    ],
)
def test_what_is_no_file_is_refused(tmp_path: Path, path: str, fault: str) -> None:
    (tmp_path / "loop").symlink_to("loop")
    with pytest.raises(ValueError, match=fault):
        read_value(tmp_path / path)


@pytest.mark.skipif(os.geteuid() == 0, reason="root reads everything")
def test_what_may_not_be_read_is_refused(tmp_path: Path) -> None:
    (tmp_path / "token").write_text("x")
    (tmp_path / "token").chmod(stat.S_IWUSR)
    with pytest.raises(ValueError, match="cannot be read: Permission denied"):
        read_value(tmp_path / "token")


def test_a_sparse_file_costs_what_may_be_read_of_it(tmp_path: Path) -> None:
    with (tmp_path / "token").open("wb") as file:
        file.truncate(2**40)
    with pytest.raises(ValueError, match="is larger than 64 KiB"):
        read_value(tmp_path / "token")


@pytest.mark.parametrize("value", ["hunter2\n", "hun\rter2", "hunter2\n\n", "hunter2\x00", "\x1bhunter2"])
@pytest.mark.parametrize(
    ("place", "path"),
    [
        ("strategies: [nats: {servers: [h], user: me, password: $X}]", "strategies[0].nats.password"),
        ("strategies: [nats: {servers: [h], token: $X}]", "strategies[0].nats.token"),
        ("sinks: {a: {webhook: {url: 'https://h', headers: {X-Key: $X}}}}", "sinks.a.webhook.headers.X-Key"),
    ],
)
def test_a_secret_with_a_line_end_is_refused_by_name(tmp_path: Path, place: str, path: str, value: str) -> None:
    text = f"deployment_id: shop\nstorage: {{dsn: 'sqlite:///x.db'}}\n{place.replace('$X', repr('${X}'))}\n"
    (tmp_path / "runner.yaml").write_text(text)
    with pytest.raises(ConfigError, match="a line end or control character is part of it") as caught:
        load_config(tmp_path / "runner.yaml", {"X": value})
    assert f" {path}: " in str(caught.value)
    assert "ter2" not in str(caught.value)
