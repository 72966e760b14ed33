"""What is no fault of a file, but hardly meant."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from runner.config import Config, advice, load_config

Load = Callable[..., Config]

MINIMAL = "deployment_id: d\nstorage: {dsn: 'sqlite:///x.db'}\n"


@pytest.fixture
def load(tmp_path: Path) -> Load:
    def load(text: str, **environ: str) -> Config:
        path = tmp_path / "f.yaml"
        path.write_text(text)
        return load_config(path, environ)

    return load


class TestAdvice:
    def test_a_sink_nobody_uses(self, load: Load, tmp_path: Path) -> None:
        config = load(
            MINIMAL + "sinks:\n  used: stdout\n  dead: stdout\n  idle: stdout\n"
            "subscriptions: [{name: a, sink: used, dead_letter: dead}]\n"
        )
        cure = "no subscription uses this sink; name it in one, or remove it"
        assert advice(config) == [f"{tmp_path}/f.yaml:6:3: sinks.idle: {cure}"]

    @pytest.mark.parametrize(
        ("storage", "strategies", "cure"),
        [
            ("dsn: 'sqlite:///x.db'", "[polling: 30s]", "add - sqlite: 25ms"),
            ("dsn: 'sqlite:///x.db'", "[polling, polling: 5s]", "add - sqlite: 25ms"),
            ("dsn: 'postgresql:///b'", "[polling]", "add - postgres"),
            ("{dsn: 'postgresql:///b', pgbouncer: yes}", "null", "with a DSN past pgbouncer, or - nats"),
            ("dsn: 'sqlite:///x.db'", "[polling, nats: 'nats://127.0.0.1']", None),
            ("dsn: 'sqlite:///x.db'", "[sqlite]", None),
            ("dsn: 'sqlite:///x.db'", "null", None),
            ("dsn: 'postgresql:///b'", "[polling, postgres]", None),
            ("dsn: 'sqlite:///x.db'", "[polling, json:JSONDecoder]", None),
        ],
    )
    def test_strategies_that_hear_nothing(self, load: Load, storage: str, strategies: str, cure: str | None) -> None:
        storage = storage if storage.startswith("{") else f"{{{storage}}}"
        found = advice(load(f"deployment_id: d\nstorage: {storage}\nstrategies: {strategies}\n"))
        if cure is None:
            assert found == []
        else:
            [line] = found
            assert "strategies: these only poll" in line
            assert cure in line

    @pytest.mark.parametrize(
        ("api", "path"),
        [
            ("{hosts: [bus.example.com]}", "api.hosts"),
            ("{hosts: ['localhost', '*.example.com']}", "api.hosts"),
            ("{root_path: /bus}", "api.root_path"),
            ("{}", None),
            ("{hosts: [localhost, 127.0.0.1]}", None),
            ("{root_path: /bus, tokens: [{name: a, secret: s, scopes: [read]}]}", None),
        ],
    )
    def test_a_proxy_that_lets_everybody_do_everything(self, load: Load, api: str, path: str | None) -> None:
        found = [line for line in advice(load(f"{MINIMAL}api: {api}\n")) if "whoever a proxy lets through" in line]
        assert [f": {path}: " in line for line in found] == ([True] if path else [])

    @pytest.mark.parametrize(
        ("storage", "cure"),
        [
            ("dsn: 'postgresql://db1/b'", "with sslmode=prefer a server at 'db1' that says no to TLS is given"),
            ("dsn: 'postgresql://10.0.0.7/b?sslmode=allow'", "with sslmode=allow a server at '10.0.0.7'"),
            ("dsn: 'postgresql://db1/b?sslmode=disable'", "set storage.tls: verify-full, or at least required"),
            ("dsn: 'postgresql://localhost,db2/b'", "a server at 'db2'"),
            ("dsn: 'postgresql://localhost/b?sslrootcert=ca.pem'", "nothing is checked against the root certificate"),
            ("dsn: 'postgresql://db1/b?sslmode=require'", None),
            ("dsn: 'postgresql://db1/b', tls: required", None),
            ("dsn: 'postgresql://db1/b?sslrootcert=system'", None),
            ("dsn: 'postgresql://localhost/b'", None),
            ("dsn: 'postgresql://127.1.2.3,[::1]/b'", None),
            ("dsn: 'postgresql:///b?host=/run/postgresql'", None),
            ("dsn: 'sqlite:///x.db'", None),
        ],
    )
    def test_a_database_that_may_be_spoken_to_in_clear(self, load: Load, storage: str, cure: str | None) -> None:
        found = advice(load(f"deployment_id: d\nstorage: {{{storage}}}\n"))
        assert [cure is not None and cure in line and ":2:11: storage.dsn: " in line for line in found] == (
            [True] if cure else []
        )

    @pytest.mark.parametrize(
        ("plugins", "path"),
        [
            ("strategies: [{nats: 'nats://u:p@n1'}]", "strategies[0].nats.servers"),
            ("strategies: [{nats: {servers: ['tls://n1', 'nats://n2'], token: t}}]", "strategies[0].nats.servers"),
            ("sinks: {s: {nats: {subject: a, servers: 'n1:4222', user: u}}}", "sinks.s.nats.servers"),
            ("sinks: {s: {webhook: {url: 'http://h/x', headers: {Authorization: a}}}}", "sinks.s.webhook.url"),
            ("sinks: {s: {webhook: {url: 'http://h/x', headers: {X-Api-Key: a}}}}", "sinks.s.webhook.url"),
            ("sinks: {s: {webhook: 'http://h/x?sig=a'}}", "sinks.s.webhook.url"),
            ("strategies: [{nats: 'tls://u:p@n1'}]", None),
            ("strategies: [{nats: {servers: 'nats://u:p@n1', tls: {}}}]", None),
            ("strategies: [{nats: {servers: n1, credentials: a.creds}}]", None),
            ("strategies: [{nats: 'nats://n1'}]", None),
            ("strategies: [{nats: 'nats://u:p@127.0.0.1'}]", None),
            ("sinks: {s: {webhook: {url: 'http://h/x', headers: {X-Team: a}}}}", None),
            ("sinks: {s: {webhook: {url: 'https://h/x', headers: {Authorization: a}}}}", None),
            ("sinks: {s: {webhook: {url: 'http://[::1]/x', headers: {Authorization: a}}}}", None),
        ],
    )
    def test_logins_that_go_in_clear(self, load: Load, plugins: str, path: str | None) -> None:
        found = [line for line in advice(load(f"{MINIMAL}{plugins}\n")) if "in clear" in line]
        assert [f": {path}: " in line for line in found] == ([True] if path else [])

    def test_files_of_nats_that_cannot_be_used(self, load: Load, tmp_path: Path) -> None:
        """They are no faults: they are read again at each connection, and nothing waits for NATS."""
        tls = "tls: {ca: no.crt}"
        for plugins, path in (
            (f"strategies: [{{nats: {{servers: n1, {tls}}}}}]", "strategies[0].nats.tls"),
            (f"sinks: {{s: {{nats: {{subject: a, servers: n1, {tls}}}}}}}", "sinks.s.nats.tls"),
        ):
            [found] = [line for line in advice(load(f"{MINIMAL}{plugins}\n")) if "no.crt" in line]
            assert f": {path}: ca: {tmp_path}/no.crt cannot be read" in found
