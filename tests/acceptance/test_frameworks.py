"""The programs of the guide for Flask and Django publish in their own transactions, with the real frameworks."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from sqlalchemy.engine import make_url

from tests.support.process import run_cli, run_python

GUIDE = (Path(__file__).parents[2] / "docs" / "embedding.md").read_text()
PROGRAMS = {
    name: text
    for text in re.findall(r"^```python\n(.*?)^```$", GUIDE, re.MULTILINE | re.DOTALL)
    for name in re.findall(r"\A# (\w+)\.py\n", text)
}

# Orders 1 and 2 are placed; what is answered with an error after the event was given leaves nothing of either.
FLASK = """
from sqlalchemy import text
from app import app, bus, engine, session

with engine.begin() as connection:
    connection.execute(text("CREATE TABLE orders (id integer PRIMARY KEY)"))


@app.post("/fails/<int:number>")
def fails(number):
    session.execute(text("INSERT INTO orders VALUES (:number)"), {"number": number})
    from runner import Event
    bus.publish(Event.new("order.placed", {"order": number}, source="/shop"), session=session)
    raise ValueError("no stock")


client = app.test_client()
assert [client.post(path).status_code for path in ("/orders/1", "/fails/3", "/orders/2")] == [201, 500, 201]
with engine.begin() as connection:
    print(sorted(connection.execute(text("SELECT id FROM orders")).scalars()))
bus.close()
"""

DJANGO = """
import django
from django.conf import settings

settings.configure(
    DATABASES={"default": DATABASE}, ROOT_URLCONF=__name__, ALLOWED_HOSTS=["*"], SECRET_KEY="x", USE_TZ=True
)
django.setup()
from django.db import connection, transaction
from django.test import Client
from django.urls import path
from runner import Event
import views

signalled = []


@transaction.atomic
def fails(request, number):
    views.order(request, number)
    raise ValueError("no stock")


def nested(request, number):
    with transaction.atomic():
        try:
            with transaction.atomic():
                views.order(request, 9)
                raise ValueError
        except ValueError:
            pass
        return views.order(request, number)


urlpatterns = [
    path("orders/<int:number>", views.order),
    path("fails/<int:number>", fails),
    path("nested/<int:number>", nested),
]
with connection.cursor() as cursor:
    cursor.execute("CREATE TABLE orders (id integer PRIMARY KEY)")
client = Client(raise_request_exception=False)
answers = [client.post(path).status_code for path in ("/orders/1", "/fails/3", "/nested/2")]
assert answers == [201, 500, 201], answers
views.bus.publish(Event.new("order.counted", source="/shop", id="outside"), session=connection)
with connection.cursor() as cursor:
    cursor.execute("SELECT id FROM orders ORDER BY id")
    print([id for (id,) in cursor.fetchall()])
views.bus.close()
"""


@pytest.fixture(params=["sqlite", "postgres"])
def dsn(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    if request.param == "sqlite":
        return "sqlite:///shop.db"
    return str(request.getfixturevalue("postgres_dsn"))


def prepare(tmp_path: Path, dsn: str) -> None:
    """Write the file and make the tables, as whoever deploys it does."""
    (tmp_path / "bus.yaml").write_text(f"deployment_id: shop\nstorage: {{dsn: '{dsn}'}}\n")
    done = run_cli("migrate", "-c", str(tmp_path / "bus.yaml"))
    assert done.returncode == 0, done.stderr


def published(tmp_path: Path) -> list[str]:
    done = run_cli("events", "list", "-c", str(tmp_path / "bus.yaml"), "--json")
    assert done.returncode == 0, done.stderr
    return sorted(re.findall(r'"type": ?"([a-z.]+)"', done.stdout))


def test_flask(tmp_path: Path, dsn: str) -> None:
    prepare(tmp_path, dsn)
    url = dsn.replace("postgresql:", "postgresql+psycopg2:")
    (tmp_path / "app.py").write_text(PROGRAMS["app"].replace("sqlite:///shop.db", url))
    done = run_python(FLASK, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert done.stdout == "[1, 2]\n"
    assert published(tmp_path) == ["order.placed"] * 2


def test_django(tmp_path: Path, dsn: str) -> None:
    prepare(tmp_path, dsn)
    url = make_url(dsn)
    if dsn.startswith("sqlite"):
        database: dict[str, object] = {"ENGINE": "django.db.backends.sqlite3", "NAME": "shop.db"}
    else:
        database = {"ENGINE": "django.db.backends.postgresql", "NAME": url.database, "USER": url.username}
        database |= {"HOST": url.query.get("host") or url.host or "", "PORT": url.port or ""}
    (tmp_path / "views.py").write_text(PROGRAMS["views"])
    done = run_python(f"DATABASE = {database!r}\n{DJANGO}", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert done.stdout == "[1, 2]\n"
    assert published(tmp_path) == ["order.counted", "order.placed", "order.placed"]
