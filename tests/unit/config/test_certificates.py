"""Files of TLS: what is wrong with one is told before anything connects, and one that is replaced is a change."""

from __future__ import annotations

import shutil
import ssl
from pathlib import Path

import pytest

from runner.config import load_config
from runner.config.certificates import identify, trust
from runner.config.difference import difference

TLS = Path(__file__).parents[2] / "integration" / "tls"


@pytest.fixture
def context() -> ssl.SSLContext:
    return ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)


@pytest.mark.parametrize(
    ("certificate", "key", "fault"),
    [
        ("server.crt", "other.key", r"key: .*other\.key cannot be used: it is not the key of the certificate"),
        ("other.crt", "locked.key", r"key: .*locked\.key has a password, .*; expected a key without one"),
        ("other.crt", "other.crt", r"key: .*other\.crt cannot be used"),
        ("server.key", "server.key", r"cert: .*server\.key cannot be used: it has no certificate"),
        ("missing.crt", "server.key", r"cert: .*missing\.crt cannot be read"),
        ("server.crt", "missing.key", r"key: .*missing\.key cannot be read"),
        ("server.crt", ".", r"key: .* cannot be read"),
    ],
)
def test_the_file_at_fault_is_named_with_its_key(
    context: ssl.SSLContext, certificate: str, key: str, fault: str
) -> None:
    with pytest.raises(ValueError, match=fault):
        identify(context, TLS / certificate, TLS / key)


@pytest.mark.parametrize("path", ["server.key", "missing.crt"])
def test_authorities_that_are_none(context: ssl.SSLContext, path: str) -> None:
    with pytest.raises(ValueError, match=rf"ca: .*{path} cannot be"):
        trust(context, "ca", TLS / path)


FILE = """\
deployment_id: test
storage: {dsn: "sqlite:///test.db"}
sinks:
  crm: {webhook: {url: "https://crm.example/", tls: {cert: a.crt, key: a.key}, auth: {oauth2: {
    token_url: "https://idp.example/", client_id: a, client_secret: b, tls: {ca: b.crt}}}}}
  other: {webhook: "https://other.example/"}
"""


@pytest.mark.parametrize(
    ("replaced", "path"),
    [
        (("a.crt",), "sinks.crm.webhook.tls"),
        (("a.key",), "sinks.crm.webhook.tls"),
        (("b.crt",), "sinks.crm.webhook.auth.oauth2.tls"),
        (("c.crt", "c.key"), "api.tls"),
        ((), None),
    ],
)
def test_a_file_that_is_replaced_is_a_change_and_watched(
    tmp_path: Path, replaced: tuple[str, ...], path: str | None
) -> None:
    names = ("a.crt", "a.key", "b.crt", "c.crt", "c.key")
    for name in names:
        shutil.copy(TLS / f"server{Path(name).suffix}", tmp_path / name)
    file = tmp_path / "runner.yaml"
    file.write_text(f"{FILE}api: {{tls: {{cert: c.crt, key: c.key}}}}\n")
    before = load_config(file)
    for name in replaced:
        shutil.copy(TLS / f"other{Path(name).suffix}", tmp_path / name)
    changes = difference(before, now := load_config(file)).changes
    assert [(each.path, each.kind, each.live) for each in changes] == ([(path, "changed", True)] if path else [])
    assert {tmp_path / name for name in names} <= set(now.watched)
    assert (before.sinks["crm"] == now.sinks["crm"]) == (path is None or path == "api.tls")
    assert before.sinks["other"] == now.sinks["other"]


def test_whether_the_listener_speaks_tls_takes_a_restart(tmp_path: Path) -> None:
    file = tmp_path / "runner.yaml"
    file.write_text(f"{FILE}api: {{tls: {{cert: c.crt, key: c.key}}}}\n")
    before = load_config(file)
    file.write_text(f"{FILE}api: {{}}\n")
    after = load_config(file)
    for one, two in ((before, after), (after, before)):
        assert [each.path for each in difference(one, two).refused] == ["api.tls"]
