"""First configurations, put together from parts such as `postgres` and `nats`."""

from __future__ import annotations

from collections.abc import Collection

__all__ = ["PARTS", "starter"]

PARTS = {
    "sqlite": "a file on this machine, no server; the default",
    "postgres": "PostgreSQL, for several instances",
    "nats": "NATS wakes the workers",
    "jetstream": "a sink that publishes to a stream of NATS",
    "webhook": "a sink that posts to a URL, signed",
    "python": "a sink that calls a function",
    "schedules": "events at regular times",
    "api": "HTTP: publish, look and steer, the dashboard, metrics",
}
"""The parts by name, in the order in which they stand in the file."""

_HEAD = """\
# yaml-language-server: $schema={schema}
# Editors complete and check keys by that file, which `runner config schema` prints. It has every key.

# Names this bus. Two deployments never see each other's events, nor may they share tables.
deployment_id: ${{DEPLOYMENT_ID:-dev}}
"""

_SQLITE = """
# Where the events are. For PostgreSQL: postgresql://user@host/database
storage:
  dsn: ${DATABASE_URL:-sqlite:///runner.db} # relative to this file
"""

_POSTGRES = """
# Where the events are.
storage:
  # Beyond this machine also ?sslmode=verify-full&sslrootcert=system, or the file of your authority.
  dsn: ${DATABASE_URL:-postgresql://runner@localhost:5432/runner}
  password: ${DATABASE_PASSWORD:-} # left out when not set; then PGPASSWORD or ~/.pgpass
  # schema: shop # a schema belongs to one deployment
"""

_STRATEGIES = """
# What wakes the workers. Without this the choice follows the storage; polling is the safety net.
# strategies:
#   - polling: 30s
#   - nats: {servers: ["nats://127.0.0.1:4222"]}
"""

_NATS = """
# What wakes the workers. Signals carry no data: one that is lost costs time, never an event.
strategies:
  - polling: 30s # the safety net; more often by itself while NATS is not heard
  - nats:
      servers: ["${NATS_URL:-nats://127.0.0.1:4222}"]
      user: ${NATS_USER:-} # left out when not set
      password: ${NATS_PASSWORD:-}
"""

_SINKS = {
    "jetstream": """\
  orders:
    nats: {subject: "orders.{type}", jetstream: true, stream: {name: ORDERS, subjects: ["orders.>"]}}
""",
    "webhook": """\
  crm:
    webhook:
      url: ${CRM_URL:-https://crm.example/events}
      # whsec_ and the base64 of 24 to 64 random bytes: the receiver checks the signature with it.
      # secret: ${file:/run/secrets/crm}
""",
    "python": """\
  handler:
    python: "builtins:print" # module:function that is given the event: yours is "my_package.orders:handle"
""",
}

_SUBSCRIPTIONS = {
    "jetstream": '  - {name: orders-to-nats, types: ["order.*"], sink: orders}\n',
    "webhook": """\
  - name: orders-to-crm
    types: ["order.*"]
    sink: crm
    retry: {max_attempts: 12, max_delay: 1h} # then the delivery is dead: `runner deliveries list --state dead`
""",
    "python": '  - {name: orders-to-handler, types: ["order.*"], sink: handler}\n',
}

_SINK_HINTS = """\
  # crm: {webhook: {url: "https://crm.example/events"}}
  # audit: {python: "my_package.audit:handle"}
"""

_SCHEDULES = """
# Events at regular times, once in the deployment, however many instances run.
schedules:
  - name: nightly
    cron: "0 2 * * *"
    timezone: Europe/Paris
    catch_up: one # what was missed while nothing ran: the last one
    event: {type: report.due}
"""

_API = """
# HTTP beside the worker: http://127.0.0.1:8080/ has the dashboard, /metrics the figures.
api:
  listen: 127.0.0.1:8080 # beyond the loopback tokens are needed
  # tokens:
  #   - {name: ops, secret: "${file:/run/secrets/ops}", scopes: [read, admin]}
"""


def starter(parts: Collection[str] = (), schema: str = "runner.schema.json") -> str:
    """
    Return the text of a first configuration.

    Args:
        parts: names in `PARTS`; without a store it is SQLite.
        schema: the JSON Schema for editors, as the file names it.

    Raises:
        ValueError: an unknown part, or two stores.
    """
    unknown = [part for part in parts if part not in PARTS]
    if unknown:
        raise ValueError(f"unknown part {unknown[0]!r}, expected one or more of: {', '.join(PARTS)}")
    if {"sqlite", "postgres"} <= set(parts):
        raise ValueError("sqlite and postgres are two stores; choose one")
    chosen = [part for part in PARTS if part in parts]
    sinks = "".join(_SINKS[part] for part in chosen if part in _SINKS)
    subscriptions = "".join(_SUBSCRIPTIONS[part] for part in chosen if part in _SUBSCRIPTIONS)
    return "".join(
        (
            _HEAD.format(schema=schema),
            _POSTGRES if "postgres" in chosen else _SQLITE,
            _NATS if {"nats", "jetstream"} & set(chosen) else _STRATEGIES,
            "\n# Where deliveries go.\nsinks:\n  terminal: stdout\n",
            sinks or _SINK_HINTS,
            "\n# Who wants which events, in which sink.\nsubscriptions:\n",
            '  - name: everything\n    types: ["*"]\n    sink: terminal\n',
            subscriptions,
            _SCHEDULES if "schedules" in chosen else "",
            _API if "api" in chosen else "",
        )
    )
