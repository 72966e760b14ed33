"""The programs of the guide to webhooks verify what the sink signs, and nothing else."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest

from runner.config import advice, load_config
from runner.sinks.http.signatures import Signer, parse_key

GUIDE = (Path(__file__).parents[2] / "docs" / "webhooks.md").read_text()
BLOCKS = dict(re.findall(r"^```(\w+)\n(.*?)^```$", GUIDE, re.MULTILINE | re.DOTALL))
SECRET, OTHER = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw", f"whsec_{'A' * 40}"
BODY = b'{"specversion":"1.0","data":"\xc3\xa9"}'


def requests() -> list[tuple[dict[str, str], bytes, bool]]:
    """Return requests of this moment, and whether the holder of SECRET may believe them."""
    return [
        (Signer(parse_key(SECRET)).headers("evt_1", BODY), BODY, True),
        (Signer(parse_key(OTHER), parse_key(SECRET)).headers("evt_1", BODY), BODY, True),
        (Signer(parse_key(OTHER)).headers("evt_1", BODY), BODY, False),
        (Signer(parse_key(SECRET)).headers("evt_1", BODY), BODY + b" ", False),
        (Signer(parse_key(SECRET)).headers("evt_1", BODY) | {"webhook-id": "evt_2"}, BODY, False),
        (Signer(parse_key(SECRET), now=lambda: 1614265330).headers("evt_1", BODY), BODY, False),
    ]


def test_the_file_is_valid_and_gives_no_reason_for_advice(tmp_path: Path) -> None:
    (tmp_path / "bus.yaml").write_text(BLOCKS["yaml"])
    config = load_config(tmp_path / "bus.yaml", {"CRM_SECRET": SECRET})
    assert not [line for line in advice(config) if "webhook" in line]


def test_python() -> None:
    program: dict[str, Any] = {}
    exec(BLOCKS["python"], program)
    for headers, body, expected in requests():
        assert program["verify"](SECRET, headers, body) is expected


@pytest.mark.skipif(shutil.which("node") is None, reason="there is no Node.js here")
def test_javascript(tmp_path: Path) -> None:
    (tmp_path / "verify.mjs").write_text(BLOCKS["javascript"])
    sent = requests()
    given = [[SECRET, headers, body.decode()] for headers, body, _ in sent]
    program = (
        "import { verify } from './verify.mjs';\n"
        f"const given = {json.dumps(given)};\n"
        "console.log(JSON.stringify(given.map(([s, h, b]) => verify(s, h, Buffer.from(b)))));\n"
    )
    (tmp_path / "main.mjs").write_text(program)
    done = subprocess.run(["node", "main.mjs"], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout) == [expected for _, _, expected in sent]
