"""
A distinct secret in every place where one can stand, and a look at everything that can be seen: FI-53, I11.

The receiver repeats all that it is sent, handlers raise what they know, and callers put secrets where none belong.
"""

from __future__ import annotations

import asyncio
import base64
import contextlib
import hashlib
import json
import re
import sqlite3
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import quote, urlencode

import nkeys
import psutil
import pytest

from tests.support.eventually import PATIENCE, eventually
from tests.support.http import Answer, ask
from tests.support.nats_jwt import Operator
from tests.support.postgres import PostgresServer
from tests.support.process import RunnerProcess
from tests.support.secrets import nothing_known
from tests.support.server import HOST, free_port

from .deployment import Deployment

NAMES = (
    "password of the database",
    "password in the URL of NATS",
    "token of NATS",
    "password of NATS",
    "API token",
    "token with a hash",
    "expired token",
    "unknown token",
    "sealing key",
    "older sealing key",
    "key in a path",
    "key in a query",
    "header from a file",
    "header from the environment",
    "bearer",
    "basic password",
    "cookie",
    "client secret",
    "key in a token_url",
    "access token",
    "header of a destination",
    "query of a destination",
    "bearer of a destination",
    "put in the wrong place",
    "put as a type",
    "query of a request",
)
SECRETS = {name: f"cAn4ry{number:02}x7kQ2mZ81wPb5NqR3tY6uH9sD4" for number, name in enumerate(NAMES)}
SIGNING, PREVIOUS, SEALED = (
    "whsec_" + base64.b64encode(f"canary of signing number {number} 0123".encode()).decode() for number in range(3)
)

CONFIG = """\
deployment_id: shop
storage: {dsn: "<dsn>"}
strategies: [{polling: 1s}, {nats: {servers: ["nats://me:<password in the URL of NATS>@127.0.0.1:1"]}}]
sealing: {keys: ["<sealing key>", "<older sealing key>"]}
destinations: {allow: {http: true, cidrs: [127.0.0.0/8]}, ports: null}
api:
  listen: "<listen>"
  tokens:
    - {name: ops, secret: "<API token>", scopes: [publish, read, admin]}
    - {name: hashed, sha256: "<digest>", scopes: [read]}
    - {name: old, secret: "<expired token>", scopes: [read], expires: 2001-01-01}
sinks:
  crm:
    webhook:
      url: "<url>/in/<key in a path>?sig=<key in a query>"
      secret: "<signing>"
      previous_secret: "<previous>"
      headers: {X-File: "${file:header}", X-Env: "${HEADER}", Cookie: "sid=<cookie>"}
      auth: {bearer: "<bearer>"}
      mode: structured
  basic: {webhook: {url: "<url>", auth: {basic: {user: me, password: "<basic password>"}}}}
  oauth:
    webhook:
      url: "<url>"
      auth:
        oauth2: {token_url: "<url>/token?key=<key in a token_url>", client_id: us, client_secret: "<client secret>"}
  token: {nats: {subject: a.token, servers: ["nats://127.0.0.1:1"], token: "<token of NATS>"}}
  login: {nats: {subject: a.login, servers: ["nats://127.0.0.1:1"], user: me, password: "<password of NATS>"}}
  creds: {nats: {subject: a.creds, servers: ["nats://127.0.0.1:1"], credentials: user.creds}}
  code: {python: "handlers:leak"}
  thread: {python: "handlers:leak_in_a_thread"}
subscriptions:
<subscriptions>
schedules: [{name: daily, cron: "@daily", event: {type: day}}]
worker: {lease: 5s, shutdown_grace: 5s}
log: {level: debug, format: console}
"""
SINKS = ("crm", "basic", "oauth", "token", "login", "creds", "code", "thread")
OPTIONS = "types: ['order.*'], retry: {max_attempts: 1}, timeout: 3s"
HANDLERS = """\
import os


async def leak(event):
    raise RuntimeError(f"refused for {os.environ['HEADER']}")


def leak_in_a_thread(event):
    try:
        raise KeyError(os.environ["HEADER"])
    except KeyError as error:
        raise ValueError("no", {"token": os.environ["HEADER"]}) from error
"""

PAGES = (
    "/",
    *("/dashboard/" + each for each in ("subscriptions", "events", "dead-letters", "deliveries", "schedules", "audit")),
    *("/dashboard/" + each for each in ("publish", "events/1", "traces/1", "subscriptions/crm", "subscriptions/mine")),
    *(f"/dashboard/deliveries/1/{each}" for each in (*SINKS, "mine")),
)
PATHS = (
    *("/events", "/events/1", "/deliveries", "/subscriptions", "/subscriptions/mine", "/schedules", "/schedules/daily"),
    *("/instances", "/status", "/audit", "/metrics", "/openapi.json", "/healthz", "/readyz"),
    *(f"/deliveries/1/{each}" for each in (*SINKS, "mine")),
)
VERBS = (
    *("check", "check --json", "check --online --json", "config show", "config show --json", "config diff --json"),
    *("status", "status --json", "doctor", "doctor --json", "instances --json", "audit", "audit --json", "top --once"),
    *("events list", "events show 1", "events show 1 --json", "events trace 1", "events export", "events cancel 99"),
    *("deliveries list", "deliveries list --json", "subscriptions list --json", "subscriptions show mine --json"),
    *("schedules list --json", "why 1 crm", "why 1 mine --json", "deliveries retry 1 nobody", "prune --dry-run"),
    *(
        "publish order.paid --dry-run",
        "secrets reseal --dry-run --json",
        "migrate --status",
        "subscriptions put x.json",
    ),
    *(f"deliveries show 1 {each}" for each in SINKS),
)


class Echo(BaseHTTPRequestHandler):
    """Gives out a token, and else answers with what it was sent."""

    def do_POST(self) -> None:
        sent = self.rfile.read(int(self.headers["Content-Length"]))
        if self.path.startswith("/token"):
            status, body = 200, json.dumps({"access_token": SECRETS["access token"]}).encode()
        else:
            said = f"{self.path}\n{self.headers}\n".encode()
            status, body = 500, said + quote(self.headers.get("Authorization", ""), safe="").encode() + sent
        self.send_response(status)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None:
        pass


@pytest.fixture(scope="module")
def echo() -> Iterator[str]:
    server = ThreadingHTTPServer((HOST, 0), Echo)
    thread = threading.Thread(target=partial(server.serve_forever, 0.05), daemon=True)
    thread.start()
    yield f"http://{HOST}:{server.server_port}"
    server.shutdown()
    server.server_close()
    thread.join()


class Shop:
    """A deployment with a secret in every place, and what was seen of it."""

    def __init__(self, directory: Path, dsn: str, echo: str) -> None:
        self.deployment = Deployment(directory, dsn)
        self.url = f"http://{HOST}:{free_port()}"
        self.echo = echo
        self.seen: dict[str, str] = {}
        self.seed, credentials = _credentials()
        (directory / "user.creds").write_text(credentials)
        (directory / "header").write_text(SECRETS["header from a file"] + "\n")
        (directory / "handlers.py").write_text(HANDLERS)
        (directory / "x.json").write_text(json.dumps({"destination": {"webhok": {"url": SECRETS["key in a path"]}}}))
        self.environ = {
            "HEADER": SECRETS["header from the environment"],
            "RUNNER_DEBUG": "1",
            "RUNNER_TOKEN": SECRETS["API token"],
        }
        subscriptions = "\n".join(f"  - {{name: {each}, sink: {each}, {OPTIONS}}}" for each in SINKS)
        self.deployment.path.write_text(
            _filled(
                CONFIG,
                SECRETS
                | {
                    "dsn": dsn,
                    "listen": self.url.removeprefix("http://"),
                    "digest": _sha256(SECRETS["token with a hash"]),
                    "url": echo,
                    "signing": SIGNING,
                    "previous": PREVIOUS,
                    "subscriptions": subscriptions,
                },
            )
        )

    def call(self, path: str, method: str = "GET", body: bytes | None = None, **headers: str) -> Answer:
        """Send a request as `ops`, unless the headers say otherwise, and keep the answer."""
        given = {"authorization": f"Bearer {SECRETS['API token']}"} | {
            name.replace("_", "-"): value for name, value in headers.items()
        }
        answer = ask(self.url, path, method=method, headers=given, body=body)
        number = len(self.seen)
        self.seen[f"{number} {method} {path[:60]}"] = f"{answer.headers} {answer.body.decode()}"
        return answer

    def put(self, name: str, definition: object) -> int:
        return self.call(f"/subscriptions/{name}", "PUT", json.dumps(definition).encode()).status

    def visit(self) -> None:
        """Log in as a person, and look at every page."""
        form = urlencode({"token": SECRETS["API token"]}).encode()
        kind = {"content_type": "application/x-www-form-urlencoded"}
        cookie = self.call("/dashboard/login", "POST", form, **kind).headers["set-cookie"].partition(";")[0]
        for page in PAGES:
            assert self.call(page, cookie=cookie, authorization="").status == 200, page
        self.call("/dashboard/login", "POST", urlencode({"token": SECRETS["unknown token"]}).encode(), **kind)

    def verb(self, args: str) -> None:
        """Run a verb that knows of no secret but what it reads itself."""
        with nothing_known():
            code, output, complaint = self.deployment._run(args.split(), "", self.environ)
        assert code in (0, 1, 2, 69, 78), f"{args}: {code}\n{output}\n{complaint}"
        self.seen[args] = output + complaint

    def leaks(self) -> list[str]:
        """Return where a secret was seen."""
        wanted = SECRETS | {"signing": SIGNING, "previous": PREVIOUS, "sealed": SEALED, "seed": self.seed}
        return [
            f"{name} in {place}: …{text[max(0, text.find(each) - 80) : text.find(each) + 40]}…"
            for name, secret in wanted.items()
            for place, text in self.seen.items()
            for each in _spelled(secret)
            if each in text
        ]


def _filled(template: str, values: Mapping[str, str]) -> str:
    """Return the template with the values."""
    return re.sub(r"<([A-Za-z_ ]+)>", lambda found: values[found[1]], template)


def _sha256(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def _credentials() -> tuple[str, str]:
    text = Operator().credentials()
    found = re.search(r"S[A-Z2-7]{57}", text)
    assert found
    assert nkeys.from_seed(found[0].encode())
    return found[0], text


def _spelled(secret: str) -> set[str]:
    """Return the spellings of a secret, that of bytes in a dump among them."""
    encoded = base64.b64encode(secret.encode()).decode().rstrip("=")
    return {secret, secret.removeprefix("whsec_"), quote(secret, safe=""), encoded, secret.encode().hex()}


@pytest.fixture(params=["sqlite", "postgres"])
def place(request: pytest.FixtureRequest, tmp_path: Path) -> tuple[str, Callable[[], str]]:
    """The DSN of an empty store, and what gives all its rows as text."""
    if request.param == "sqlite":
        return "sqlite:///shop.db", partial(_dump, tmp_path / "shop.db")
    server: PostgresServer = request.getfixturevalue("postgres")
    dsn: str = request.getfixturevalue("postgres_dsn")
    secret = f":{SECRETS['password of the database']}@"  # the server takes any
    return dsn.replace("@", secret, 1), partial(server.psql, ALL_ROWS, dsn)


ALL_ROWS = r"SELECT format('TABLE %I', tablename) FROM pg_tables WHERE schemaname = 'public' \gexec"


def _dump(path: Path) -> str:
    with contextlib.closing(sqlite3.connect(path)) as database:
        return "\n".join(database.iterdump())


@pytest.mark.timeout(600)  # sixty commands, one after the other
def test_no_secret_is_shown_anywhere(tmp_path: Path, echo: str, place: tuple[str, Callable[[], str]]) -> None:
    """As text for people; FI-53 of the chaos suite has JSON, under faults."""
    dsn, rows = place
    shop = Shop(tmp_path, dsn, echo)
    with RunnerProcess("start", "-c", "runner.yaml", env=shop.environ, cwd=tmp_path) as server:
        server.wait_for_line("started", 4 * PATIENCE)
        misuse(shop)
        publish(shop)
        for path in PATHS:
            assert shop.call(path).status == 200, path
        shop.visit()
        shop.seen["ps"] = " ".join(psutil.Process(server.pid).cmdline())
        for args in VERBS:
            if not (dsn.startswith("postgresql") and args.endswith("--json")):  # whose texts are the same on both
                shop.verb(args)
        server.stop()
        shop.seen["log"] = "\n".join([*server.stdout, *server.stderr])
    shop.seen["tables"] = rows()
    assert "order.created" in shop.seen["tables"], "these are not the rows"
    assert "Traceback" not in shop.seen["log"]
    assert shop.seen["log"].count("delivery dead") >= len(SINKS) + 1
    assert not shop.leaks(), "\n".join(shop.leaks())


def misuse(shop: Shop) -> None:
    """Put secrets where they belong, where none belong, and where nobody is admitted."""
    secrets = {
        "url": f"{shop.echo}/in?key={SECRETS['query of a destination']}",
        "secret": SEALED,
        "headers": {"X-Key": SECRETS["header of a destination"]},
        "auth": {"bearer": SECRETS["bearer of a destination"]},
    }
    definition = {"types": ["order.*"], "retry": {"max_attempts": 1}, "timeout": "3s"}
    assert shop.put("mine", definition | {"destination": {"webhook": secrets}}) == 201
    lost = SECRETS["put in the wrong place"]
    for wrong in (
        {"sink": {"webhook": secrets | {"secret": lost}}},
        {"sink": f"https://me:{lost}@hooks.example/"},
        {"sink": lost},
        {"types": {"webhook": {"secret": lost}}, "sink": "crm"},
        {"types": [f"Bearer {SECRETS['put as a type']}", ["x", lost]], "sink": "crm"},
        {"expires_at": lost, "destination": {"webhook": secrets}},
        {"destination": {"webhook": secrets | {"secret": lost}}},
        {"destination": {"webhook": secrets | {"headers": {"X-Key": {"value": lost}}}}},
        {"destination": {"webhook": secrets, lost: {}}},
        {"destination": {lost: secrets}},
        {"destination": lost},
        {lost: "x", "sink": "crm"},
    ):
        assert shop.put("wrong", wrong) == 422, wrong
    for token in (SECRETS["expired token"], SECRETS["unknown token"]):
        assert shop.call("/status", authorization=f"Bearer {token}").status == 401
        assert shop.call("/events", "POST", authorization=f"Basic {token}").status == 401
    asked = SECRETS["query of a request"]
    for query in (f"?token={asked}", f"?{asked}=1", f"?limit={asked}", f"?cursor={asked}", f"?since={asked}"):
        assert shop.call(f"/events{query}").status == 400
    assert shop.call("/status", authorization=f"Bearer {SECRETS['token with a hash']}").status == 200


def publish(shop: Shop) -> None:
    """Publish an event that everybody refuses."""
    attributes = {"ce_specversion": "1.0", "ce_type": "order.created", "ce_source": "/shop", "ce_id": "1"}
    assert shop.call("/events", "POST", b"{}", content_type="application/json", **attributes).status == 202

    async def refused() -> bool:
        found = await asyncio.to_thread(lambda: ask(shop.url, "/deliveries?state=dead", headers=_bearer()))
        return len(found.json["items"]) == len(SINKS) + 1

    asyncio.run(eventually(refused, timeout=60))


def _bearer() -> Mapping[str, str]:
    return {"authorization": f"Bearer {SECRETS['API token']}"}


UNREACHABLE: Sequence[str] = (
    *(
        "publish a.b",
        "events list",
        "events show 1",
        "events replay --subscription a --dry-run",
    ),
    *(
        "deliveries list --json",
        "deliveries retry 1 a",
        "subscriptions list",
        "subscriptions put x.json",
        "status --json",
    ),
    *("schedules list", "instances", "audit", "doctor --json", "check --online --json", "migrate --status", "why 1 a"),
    *("prune --dry-run", "secrets reseal", "config diff", "bench --events 100 --json", "top --once", "events export"),
)


def test_nor_is_one_in_the_errors_of_a_verb_whose_database_is_away(tmp_path: Path) -> None:
    password = SECRETS["password of the database"]
    storage = f"dsn: 'postgresql://me:{password}@127.0.0.1:1/shop?application_name=x', start_timeout: 10ms"
    deployment = Deployment(tmp_path, "")
    deployment.path.write_text(
        f"deployment_id: shop\nstorage: {{{storage}}}\nsealing: {{keys: ['{SECRETS['sealing key']}']}}\n"
        f"strategies: [{{polling: 1s}}, {{postgres: {{dsn: 'postgresql://us:{password}x@127.0.0.1:1/shop'}}}}]\n"
    )
    (tmp_path / "x.json").write_text("{}")
    seen = {}
    for args in UNREACHABLE:
        with nothing_known():
            code, output, complaint = deployment._run(args.split(), "", {"RUNNER_DEBUG": "1"})
        assert code != 0, f"{args}: {output}"
        seen[args] = output + complaint
    assert sum("Traceback" in each for each in seen.values()) > 10, "the level of detail is not what this is about"
    hidden = (password, SECRETS["sealing key"])
    assert [
        args for args, text in seen.items() if any(each in text for secret in hidden for each in _spelled(secret))
    ] == []
