"""The `storage` section: the password, TLS, and what a pooler takes."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from runner.config import Config, Secret, dump, load_config
from runner.config.dsn import Dsn
from runner.errors import ConfigError

Load = Callable[..., Config]


@pytest.fixture
def load(tmp_path: Path) -> Load:
    def load(text: str, **environ: str) -> Config:
        path = tmp_path / "f.yaml"
        path.write_text(text)
        return load_config(path, environ)

    return load


class TestPassword:
    SECRET = "Kx3/8fTq+Zb2==@:#?%"

    def dsn(self, load: Load, storage: str, **environ: str) -> Dsn:
        return load(f"deployment_id: d\nstorage: {{{storage}}}\n", **environ).storage.dsn

    def test_apart_from_the_dsn_nothing_has_to_be_encoded(self, load: Load, tmp_path: Path) -> None:
        (tmp_path / "password").write_text(self.SECRET)
        for storage in ("password: '${P}'", "password: '${file:password}'"):
            dsn = self.dsn(load, f"dsn: 'postgresql://u@h/b', {storage}", P=self.SECRET)
            assert dsn.password == Secret(self.SECRET)
        shown = json.dumps(
            dump(load(f"deployment_id: d\nstorage: {{dsn: 'postgresql://u@h/b', password: '{self.SECRET}'}}"))
        )
        assert "Kx3" not in shown

    def test_the_environment_comes_last(self, load: Load) -> None:
        assert self.dsn(load, "dsn: 'postgresql://h/b'", PGPASSWORD=self.SECRET).password == Secret(self.SECRET)
        assert self.dsn(load, "dsn: 'postgresql://u:a@h/b'", PGPASSWORD="b").password == Secret("a")
        assert self.dsn(load, "dsn: 'postgresql://u@h/b', password: a", PGPASSWORD="b").password == Secret("a")
        assert self.dsn(load, "dsn: 'postgresql://u@h/b'", PGPASSWORD="").password is None

    def test_a_strategy_has_its_own(self, load: Load) -> None:
        text = "deployment_id: d\nstorage: {dsn: 'postgresql://h/b', password: a}\n"
        config = load(text + "strategies: [{postgres: {dsn: 'postgresql://i/b', password: c}}, postgres]\n")
        assert [dsn.password for _, dsn in config.dsns()] == [Secret("a"), Secret("c")]

    @pytest.mark.parametrize(
        ("text", "message"),
        [
            (
                "storage: {dsn: 'postgresql://u:p@h/b', password: q}",
                "storage.password: the DSN has one, too; give it once",
            ),
            ("storage: {dsn: 'sqlite:///b', password: q}", "storage.password: SQLite has none"),
            ("storage: {dsn: 'sqlite:///b', tls: required}", "storage.tls: SQLite has none"),
            (
                "storage: {dsn: 'postgresql:///b'}\nstrategies: [{postgres: {password: q}}]",
                "into storage.password",
            ),
        ],
    )
    def test_one_place_and_one_only(self, load: Load, text: str, message: str) -> None:
        with pytest.raises(ConfigError, match=message):
            load(f"deployment_id: d\n{text}\n")


class TestTls:
    @pytest.mark.parametrize(
        ("parameters", "tls", "environ", "sslmode"),
        [
            ("", "optional", {}, "prefer"),
            ("", "required", {}, "require"),
            ("?sslmode=prefer", "verify-ca", {}, "verify-ca"),
            ("?sslmode=verify-full", "required", {}, "verify-full"),
            ("", "verify-full", {}, "verify-full"),
            ("?sslrootcert=system", "required", {}, "verify-full"),
            ("", "optional", {"PGSSLMODE": "verify-ca"}, "verify-ca"),
            ("?sslmode=require", "optional", {"PGSSLMODE": "disable"}, "require"),
            ("", "optional", {"PGSSLROOTCERT": "system"}, "verify-full"),
        ],
    )
    def test_the_least_that_is_wanted(
        self, load: Load, parameters: str, tls: str, environ: dict[str, str], sslmode: str
    ) -> None:
        text = f"deployment_id: d\nstorage: {{dsn: 'postgresql://h/b{parameters}', tls: {tls}}}\n"
        own = f"strategies: [{{postgres: 'postgresql://i/b{parameters}'}}]\n"
        assert [dsn.sslmode for _, dsn in load(text + own, **environ).dsns()] == [sslmode, sslmode]

    @pytest.mark.parametrize(
        ("parameters", "tls", "environ"),
        [
            ("?sslmode=disable", "required", {}),
            ("?sslmode=allow", "required", {}),
            ("?sslmode=require", "verify-full", {}),
            ("?sslmode=verify-ca", "verify-full", {}),
            ("", "required", {"PGSSLMODE": "disable"}),
        ],
    )
    def test_less_is_refused(self, load: Load, parameters: str, tls: str, environ: dict[str, str]) -> None:
        with pytest.raises(ConfigError, match=f"storage.tls: {tls} is more than sslmode="):
            load(f"deployment_id: d\nstorage: {{dsn: 'postgresql://h/b{parameters}', tls: {tls}}}", **environ)
        direct = f"strategies: [{{postgres: 'postgresql://h/b{parameters}'}}]"
        with pytest.raises(ConfigError, match=f"strategies.0..postgres: tls: {tls} is more than sslmode="):
            load(f"deployment_id: d\nstorage: {{dsn: 'postgresql:///b?host=/run', tls: {tls}}}\n{direct}", **environ)

    def test_sockets_need_none(self, load: Load) -> None:
        text = "deployment_id: d\nstorage: {dsn: 'postgresql:///b?host=/run', tls: verify-full}"
        assert load(text).storage.dsn.sslmode == "prefer"


def test_options_that_a_pooler_would_drop_are_refused(load: Load) -> None:
    text = "deployment_id: d\nstorage: {dsn: 'postgresql://h/b?application_name=a%s', pgbouncer: yes}\n"
    with pytest.raises(ConfigError, match="pgbouncer: in transaction mode it passes no options on"):
        load(text % "&options=-csearch_path%3Dapp")
    assert load(text % "&connect_timeout=3&target_session_attrs=primary&sslmode=require").storage.pgbouncer


class TestLeftOut:
    """`${VAR:-}`: the key may as well not be there."""

    def test_an_optional_key_has_its_default(self, load: Load) -> None:
        text = """\
deployment_id: d
subject: ${X:-}
storage: {dsn: 'postgresql://h/b', schema: '${X:-}', password: '${X:-}', pool: '${X:-}', tls: '${X:-}'}
strategies: [polling: '${X:-}', nats: {servers: ['${X:-}', 'nats://h'], user: '${X:-}', tls: {ca: '${X:-}'}}]
sinks: {s: {webhook: {url: 'https://h', headers: {A: '${X:-}', B: b}, timeout: '${X:-}'}}}
subscriptions: [{name: a, sink: s, types: '${X:-}', rate: '${X:-}', retry: '${X:-}', batch: '${X:-}'}]
worker: ${X:-}
retention: {delivered: '${X:-}', dead: '${X:-null}'}
log: {level: '${X:-}'}
"""
        plain = """\
deployment_id: d
storage: {dsn: 'postgresql://h/b'}
strategies: [polling, nats: {servers: ['nats://h'], tls: {}}]
sinks: {s: {webhook: {url: 'https://h', headers: {B: b}}}}
subscriptions: [{name: a, sink: s}]
retention: {dead: null}
"""
        assert dump(load(text)) == dump(load(plain))

    def test_a_schema_is_never_called_null(self, load: Load) -> None:
        storage = "deployment_id: d\nstorage: {dsn: 'postgresql://h/b', schema: '${S:-null}'}"
        assert load(storage).storage.schema_name is None
        assert load(storage, S="").storage.schema_name is None
        assert load(storage, S="shop").storage.schema_name == "shop"

    def test_a_required_key_names_the_variable(self, load: Load) -> None:
        with pytest.raises(ConfigError) as caught:
            load("deployment_id: ${ID:-}\nstorage:\n  dsn: ${DATABASE_URL:-}\n")
        faults = [line.partition("f.yaml:")[2] for line in caught.value.faults]
        assert faults == [
            "1:1: deployment_id: this key is required, and nothing is given by ${ID:-}",
            "3:3: storage.dsn: this key is required, and nothing is given by ${DATABASE_URL:-}",
        ]
        with pytest.raises(ConfigError, match=r"sinks\.a\.webhook\.url: this key is required"):
            load("deployment_id: d\nstorage: {dsn: 'sqlite:///d.db'}\nsinks: {a: {webhook: '${URL:-}'}}")
