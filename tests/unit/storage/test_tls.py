"""TLS as libpq means it: what is tried, what is checked, and which files are needed."""

from __future__ import annotations

import shutil
import ssl
from pathlib import Path

import pytest

from runner.config.dsn import Dsn
from runner.storage.postgres.tls import Encryption, encryptions

FILES = Path(__file__).parents[2] / "integration" / "tls"
ROOT = "sslrootcert=server.crt"
CLIENT = "sslcert=server.crt&sslkey=server.key"


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("HOME", str(tmp_path))
    return tmp_path


def given(parameters: str, host: str = "db") -> tuple[Encryption, ...]:
    return encryptions(Dsn.parse(f"postgresql:///events?host={host}&{parameters}", base=FILES))


@pytest.mark.parametrize(
    ("parameters", "kinds"),
    [
        ("", "tls plain"),
        ("sslmode=prefer", "tls plain"),
        ("sslmode=allow", "plain tls"),
        ("sslmode=require", "tls"),
        ("sslmode=disable", "plain"),
        (f"sslmode=disable&{ROOT}&{CLIENT}", "plain"),
        (f"sslmode=prefer&{ROOT}&{CLIENT}", "tls plain"),
        (f"sslmode=verify-full&{ROOT}", "tls"),
    ],
)
def test_what_is_tried(parameters: str, kinds: str) -> None:
    assert ["tls" if each else "plain" for each in given(parameters)] == kinds.split()
    assert given(parameters, host="/run/postgresql") == (False,)  # sockets have no TLS


@pytest.mark.parametrize(
    ("parameters", "verify_mode", "check_hostname"),
    [
        ("sslmode=require", ssl.CERT_NONE, False),
        (f"sslmode=require&{ROOT}", ssl.CERT_REQUIRED, False),
        (f"sslmode=verify-ca&{ROOT}", ssl.CERT_REQUIRED, False),
        (f"sslmode=verify-full&{ROOT}", ssl.CERT_REQUIRED, True),
        (f"sslmode=require&{ROOT}&{CLIENT}", ssl.CERT_REQUIRED, False),
        (f"sslmode=require&{CLIENT}", ssl.CERT_NONE, False),
        (f"sslmode=prefer&{ROOT}", ssl.CERT_NONE, False),
        (f"sslmode=allow&{ROOT}&{CLIENT}", ssl.CERT_NONE, False),
        ("sslrootcert=system", ssl.CERT_REQUIRED, True),
    ],
)
def test_what_is_checked(parameters: str, verify_mode: ssl.VerifyMode, check_hostname: bool) -> None:
    [context] = [each for each in given(parameters) if each]
    assert (context.verify_mode, context.check_hostname) == (verify_mode, check_hostname)
    if ROOT in parameters:
        assert len(context.get_ca_certs()) == 1


@pytest.mark.parametrize("mode", ["require", "verify-ca", "verify-full"])
def test_what_the_dsn_does_not_name_is_taken_from_home(home: Path, mode: str) -> None:
    directory = home / ".postgresql"
    directory.mkdir()
    for own, file in (("root.crt", "server.crt"), ("postgresql.crt", "server.crt"), ("postgresql.key", "server.key")):
        shutil.copy(FILES / file, directory / own)
    [context] = given(f"sslmode={mode}")
    assert context
    assert context.verify_mode == ssl.CERT_REQUIRED
    assert len(context.get_ca_certs()) == 1


@pytest.mark.parametrize(
    ("parameters", "message"),
    [
        (
            "sslmode=verify-full",
            "sslmode=verify-full needs a root certificate, and ~/.postgresql/root.crt",
        ),
        ("sslmode=verify-ca", "add sslrootcert=FILE, or sslrootcert=system"),
        ("sslmode=verify-full&sslrootcert=none.crt", "sslrootcert: .*/none.crt cannot be read; correct the path"),
        ("sslrootcert=none.crt", "sslrootcert: .*/none.crt cannot be read"),
        ("sslmode=require&sslrootcert=server.key", "sslrootcert: .*/server.key cannot be used: "),
        ("sslcert=server.crt&sslkey=none.key", "sslkey: .*/none.key cannot be read"),
        ("sslcert=none.crt&sslkey=server.key", "sslcert: .*/none.crt cannot be read"),
        ("sslcert=server.key&sslkey=server.crt", "cannot be used: "),
    ],
)
def test_a_file_that_cannot_be_used_is_named(parameters: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        given(parameters)


def test_a_home_that_is_none_holds_nothing(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (home / "file").touch()
    for nowhere in (home / "file", home / "not there", Path("/proc/1/nowhere")):
        monkeypatch.setenv("HOME", str(nowhere))
        assert len(given("")) == 2
