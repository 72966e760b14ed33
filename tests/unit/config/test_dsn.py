from __future__ import annotations

from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from runner.config.dsn import Dsn
from runner.config.secret import Secret

BASE = Path("/etc/runner")


def parse(text: str) -> Dsn:
    return Dsn.parse(text, base=BASE)


@pytest.mark.parametrize("scheme", ["postgres", "postgresql", "postgresql+asyncpg"])
def test_the_schemes_of_postgresql(scheme: str) -> None:
    dsn = parse(f"{scheme}://me:pw@db.example:5433/bus")
    assert dsn == Dsn(
        scheme="postgresql", hosts=(("db.example", 5433),), user="me", password=Secret("pw"), database="bus"
    )


@pytest.mark.parametrize(
    ("text", "hosts"),
    [
        ("postgresql://h1:5432,h2:5433/b", (("h1", 5432), ("h2", 5433))),
        ("postgresql://h1,h2/b", (("h1", 5432), ("h2", 5432))),
        ("postgresql://h1,h2/b?port=1,2", (("h1", 1), ("h2", 2))),
        ("postgresql://h1,h2/b?port=7", (("h1", 7), ("h2", 7))),
        ("postgresql:///b?host=h1:1&host=h2:2", (("h1", 1), ("h2", 2))),
        ("postgresql:///b?host=h1,h2&port=1,2", (("h1", 1), ("h2", 2))),
        ("postgresql://u:p@/b?host=/run/postgresql", (("/run/postgresql", 5432),)),
        ("postgresql://u@%2Frun%2Fpostgresql:5433/b", (("/run/postgresql", 5433),)),
        ("postgresql://app:pw@/shop?host=/cloudsql/p:r:main", (("/cloudsql/p:r:main", 5432),)),
        ("postgresql://app@/shop?host=/cloudsql/p:r:main&port=5433", (("/cloudsql/p:r:main", 5433),)),
        (
            "postgresql:///b?host=/cloudsql/p:r:a,/cloudsql/p:r:b&port=1,2",
            (("/cloudsql/p:r:a", 1), ("/cloudsql/p:r:b", 2)),
        ),
        ("postgresql:///b?host=/cloudsql/p:r:a&host=db:7", (("/cloudsql/p:r:a", 5432), ("db", 7))),
        ("postgresql:///b?host=%2Fcloudsql%2Fp%3Ar%3Amain", (("/cloudsql/p:r:main", 5432),)),
        ("postgresql:///b?host=/run/a:5433", (("/run/a:5433", 5432),)),
        ("postgresql:///b?host=/run/100%2525", (("/run/100%25", 5432),)),
        ("postgresql://%2Fcloudsql%2Fp%3Ar%3Amain:5433/b", (("/cloudsql/p:r:main", 5433),)),
        ("postgresql://%2fa%2Cb,h2:1/b", (("/a,b", 5432), ("h2", 1))),
        ("postgresql:///b?host=[::1]:5433,::1", (("::1", 5433), ("::1", 5432))),
        ("postgresql://[::1]:5433/b", (("::1", 5433),)),
        ("postgresql://[::1],[2001:db8::1]:1/b", (("::1", 5432), ("2001:db8::1", 1))),
        ("postgresql://[fe80::1%25eth0]/b", (("fe80::1%eth0", 5432),)),
        ("postgresql:///b?host=::1", (("::1", 5432),)),
        ("postgresql://u@:5433/b", (("localhost", 5433),)),
        ("postgresql:///b?port=5433", (("localhost", 5433),)),
        ("postgresql://", (("localhost", 5432),)),
    ],
)
def test_hosts(text: str, hosts: tuple[tuple[str, int], ...]) -> None:
    assert parse(text).hosts == hosts


def test_parameters() -> None:
    dsn = parse(
        "postgres://h/b?sslmode=verify-full&sslrootcert=ca.pem&application_name=my%20app&connect_timeout=3"
        "&target_session_attrs=read-write&options=-c%20work_mem%3D64MB&user=me&password=p%26w"
    )
    assert dsn.sslmode == "verify-full"
    assert dsn.sslrootcert == BASE / "ca.pem"
    assert dsn.server_settings == {"application_name": "my app", "options": "-c work_mem=64MB"}
    assert dsn.connect_timeout == 3.0
    assert dsn.target_session_attrs == "read-write"
    assert dsn.user == "me"
    assert dsn.password == Secret("p&w")
    assert parse("postgresql://h/b?sslrootcert=system").sslmode == "verify-full"
    assert parse("postgresql://h/b?sslrootcert=system").sslrootcert == "system"
    assert parse("postgresql://h/b?sslrootcert=./system").sslrootcert == BASE / "system"
    assert parse("postgresql://h/b?ssl=require").sslmode == "require"
    assert parse("postgresql://h/b").sslmode == "prefer"
    assert parse("postgresql://h/b?connect_timeout=0").connect_timeout is None


@pytest.mark.parametrize(
    ("text", "path"),
    [
        ("sqlite:///runner.db", "/etc/runner/runner.db"),
        ("sqlite:///../data/runner.db", "/etc/data/runner.db"),
        ("sqlite:////var/lib/runner.db", "/var/lib/runner.db"),
        ("sqlite://runner.db", "/etc/runner/runner.db"),
        ("sqlite://data/runner.db", "/etc/runner/data/runner.db"),
        ("sqlite+aiosqlite:///runner.db", "/etc/runner/runner.db"),
    ],
)
def test_paths_of_sqlite(text: str, path: str) -> None:
    assert parse(text) == Dsn(scheme="sqlite", path=Path(path))
    assert str(parse(text)) == f"sqlite:///{path}"


@pytest.mark.parametrize(
    "text", ["sqlite://", "sqlite:///", "sqlite:///:memory:", "sqlite://:memory:", "sqlite:///file:x"]
)
def test_sqlite_in_memory_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="a database in memory cannot be shared"):
        parse(text)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "got text without a scheme"),
        ("runner.db", "got text without a scheme"),
        ("mysql://u:hunter2@h/b", "got the scheme 'mysql'"),
        ("postgresql://h/b?sslmod=require", "unknown parameter 'sslmod', expected one of: .*; did you mean 'sslmode'"),
        ("postgresql://h/b?schema=x", "unknown parameter 'schema': set storage.schema"),
        ("postgresql://h/b?pgbouncer=true", "set storage.pgbouncer"),
        ("postgresql://h/b?channel_binding=require", "the driver has none"),
        ("postgresql://h/b?sslmode=yes", "sslmode: expected one of: disable, allow, prefer"),
        ("postgresql://h/b?target_session_attrs=standby", "target_session_attrs: expected one of: any, primary"),
        ("postgresql://h/b?connect_timeout=5s", "connect_timeout: expected whole seconds"),
        ("postgresql://h/b?sslrootcert=system&sslmode=verify-ca", "sslrootcert=system: .* use sslmode=verify-full"),
        ("postgresql://h/b?sslkey=a", "sslkey: there is no sslcert that it belongs to"),
        ("postgresql://h/b?user=a&user=b", "user is given twice"),
        ("postgresql://u@h/b?user=a", "user is given twice"),
        ("postgresql://h/b?host=x", "the host is given twice"),
        ("postgresql://h:1/b?port=2", "the port is given twice"),
        ("postgresql://h1,h2,h3/b?port=1,2", "port: expected one, or as many as there are hosts"),
        ("postgresql://%2Fcloudsql%2Fp:r:main/b", "has to be written %3A; or give it as .host=/directory"),
        ("postgresql:///b?host=/" + "x" * 100, "the path of a socket has at most 107 bytes"),
        ("postgresql://h:0/b", "the port is no number from 1 to 65535"),
        ("postgresql://h:65536/b", "the port is no number"),
        ("postgresql://u:hunter2/x@h/b", "percent-encoded"),
        ("postgresql://u:hunter2?x@h/b", "percent-encoded"),
        ("postgresql://u:hunter2#x@h/b", "percent-encoded"),
        ("postgresql://u:p@hunter2/x@h/b", "percent-encoded"),
        ("postgresql://u:hunter2%x@h/b", "has to be written %25"),
        ("postgresql://u:hunter2%00@h/b", "NUL"),
        ("postgresql://u:hunter2%ff@h/b", "not UTF-8"),
        ("postgresql://u:hunter2 x@h/b", "no spaces"),
        ("postgresql://u:hunter2\n@h/b", "no spaces, line ends"),
        ("sqlite:///a.db?mode=ro", "sqlite takes no parameters"),
        ("sqlite:///data/", "got that of a directory"),
    ],
)
def test_what_is_refused_and_that_no_password_is_repeated(text: str, message: str) -> None:
    with pytest.raises(ValueError, match=message) as caught:
        parse(text)
    assert "hunter2" not in str(caught.value)


def test_the_password_never_shows() -> None:
    dsn = parse("postgresql://me:hunter2@h1,h2:1/b?sslmode=require&application_name=x%20y&connect_timeout=5")
    assert str(dsn) == ("postgresql://me:***@h1:5432,h2:1/b?sslmode=require&application_name=x%20y&connect_timeout=5")
    for shown in (str(dsn), repr(dsn), f"{dsn}", dsn.display, str([dsn]), f"{dsn.password!s:>20}"):
        assert "hunter2" not in shown
    assert dsn.password is not None
    assert dsn.password.reveal() == "hunter2"


def test_dsns_can_be_told_apart_and_kept_in_sets() -> None:
    assert len({parse("postgresql://h/b"), parse("postgres://h:5432/b"), parse("postgresql://h/c")}) == 2


def test_a_secret_is_equal_by_content_and_survives_no_detour() -> None:
    assert Secret("a") == Secret("a") != Secret("b")
    assert Secret("a") != "a"
    assert hash(Secret("a")) == hash(Secret("a"))
    assert repr(Secret("a")) == str(Secret("a")) == f"{Secret('a')}" == "***"
    with pytest.raises(TypeError):
        "".join([Secret("a")])  # type: ignore[list-item]  # the point: it is no str


WORDS = st.text(min_size=1, max_size=20).filter(lambda text: "\0" not in text and text.isprintable())
HOSTS = st.one_of(
    st.from_regex(r"[a-z][a-z0-9-]{0,10}(\.[a-z]{2,3})?", fullmatch=True),
    st.sampled_from(
        ["::1", "2001:db8::5", "fe80::1%eth0", "/run/postgresql", "/cloudsql/p:r:main", "/a,b", "127.0.0.1"]
    ),
)


@settings(deadline=None)
@given(
    hosts=st.lists(st.tuples(HOSTS, st.integers(1, 65535)), min_size=1, max_size=3),
    user=WORDS,
    password=WORDS,
    database=WORDS,
    server_settings=st.dictionaries(st.sampled_from(["application_name", "options"]), WORDS),
    sslmode=st.sampled_from(["disable", "prefer", "require", "verify-full"]),
)
def test_what_is_written_is_read_as_the_same(server_settings: dict[str, str], **fields: Any) -> None:
    hosts, password = tuple(fields.pop("hosts")), Secret(fields.pop("password"))
    dsn = Dsn(scheme="postgresql", hosts=hosts, password=password, server_settings=server_settings, **fields)
    assert parse(dsn.reveal()) == dsn
    assert parse(dsn.display.replace(":***@", f":{quote(password.reveal(), safe='')}@", 1)) == dsn


@settings(deadline=None)
@given(st.text(max_size=40), st.sampled_from(["postgresql://", "postgres://u:hunter2@h/", "sqlite:///", ""]))
def test_any_text_is_a_dsn_or_a_value_error(text: str, start: str) -> None:
    try:
        dsn = parse(start + text)
        assert dsn.scheme == "sqlite" or dsn.hosts
        message = ""
    except ValueError as error:
        message = str(error)
    assert "hunter2" not in message
    assert "\n" not in message
