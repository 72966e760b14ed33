"""Tokens are shown nowhere: not in the log, an error, a metric, the configuration or a row of a table."""

from __future__ import annotations

import sqlite3
from pathlib import Path

from tests.support.http import Answer, ask
from tests.support.server import free_port

from .deployment import Deployment

CANARIES = [f"evb_canary{number}{'x' * 40}" for number in range(3)]
KNOWN, EXPIRED, UNKNOWN = CANARIES
EVENT = {"ce-specversion": "1.0", "ce-type": "a", "ce-source": "/"}


def test_no_token_is_shown(tmp_path: Path) -> None:
    port = free_port()
    scopes = "scopes: [publish, read]"
    tokens = (
        f"[{{name: ops, secret: {KNOWN}, {scopes}}}, {{name: old, secret: {EXPIRED}, {scopes}, expires: 2001-01-01}}]"
    )
    deployment = Deployment(tmp_path, "sqlite:///runner.db")
    deployment.write(more=f'api: {{listen: "127.0.0.1:{port}", tokens: {tokens}}}\n')
    deployment.path.write_text(deployment.path.read_text().replace("log: {", "log: {level: debug, "))
    answers: list[Answer] = []

    def send(path: str, method: str = "POST", **headers: str) -> int:
        named = {name.replace("_", "-"): value for name, value in headers.items()}
        answers.append(ask(f"http://127.0.0.1:{port}", path, method=method, headers=EVENT | named))
        return answers[-1].status

    with deployment.process("start") as process:
        process.wait_for_line("started")
        assert send("/events", ce_id="1", authorization=f"Bearer {KNOWN}") == 202
        for token in (EXPIRED, UNKNOWN):
            assert send("/events", ce_id="2", authorization=f"Bearer {token}") == 401
        for value in (f"Basic {KNOWN}", f"Bearer {KNOWN}, Bearer {UNKNOWN}"):
            assert send("/events", ce_id="3", authorization=value) == 401
        for token in CANARIES:
            for query in (f"?access_token={token}", f"?token={token}", f"?{token}=1", f"?dry_run={token}"):
                assert send(f"/events{query}", ce_id="4", authorization=f"Bearer {KNOWN}") == 400
            assert send(f"/events/stream?types=a&access_token={token}", "GET", authorization=f"Bearer {KNOWN}") == 400
            assert send("/events/stream", "GET", authorization=f"Bearer {KNOWN}", last_event_id=token) == 400
            assert send(f"/{token}", "GET", authorization=f"Bearer {KNOWN}") == 404
        assert send("/metrics", "GET", authorization=f"Bearer {KNOWN}") == 200
        printed = "\n".join([*process.stdout, *process.stderr, process.report()])
    shown = [answer.body.decode() + str(answer.headers) for answer in answers]
    shown += [printed, *deployment.cli("config", "show"), *deployment.cli("check")]
    with sqlite3.connect(tmp_path / "runner.db") as database:
        shown.append("\n".join(database.iterdump()))
    database.close()
    for canary in CANARIES:
        assert [text for text in shown if canary[:16] in text] == []
