"""
The cases of the JSON format suite of github.com/cloudevents/conformance (Apache License 2.0, The CloudEvents Authors).

Each is written as what differs from the suite's minimal event, under the id it has there; `ABSENT` takes a member away.
"""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

from runner.event import Event

ABSENT = object()

_CORE = {"specversion": "1.0", "type": "io.cloudevents.test", "source": "https://cloudevents.io"}
_EXTENSIONS: dict[str, str | int | bool] = {
    "extinteger": 10,
    "extboolean": True,
    "extstring": "text",
    "exturi": "https://cloudevents.io",
    "exturiref": "//authority/path",
    "exttimestamp": "2023-03-31T15:12:00Z",
    "extbinary": "TWE=",
}
_ALL_CORE = {
    "datacontenttype": "text/plain",
    "dataschema": "https://cloudevents.io/dataschema",
    "subject": "tests",
    "time": "2018-04-05T17:31:00Z",
}


def document(id_: str, **members: Any) -> dict[str, Any]:
    """Return the JSON document of a case."""
    return {name: value for name, value in ({"id": id_} | _CORE | members).items() if value is not ABSENT}


def sample(id: str, **attributes: Any) -> Event:
    return Event(id=id, type=_CORE["type"], source=attributes.pop("source", _CORE["source"]), **attributes)


_NOON = datetime(2018, 4, 5, 17, 31, tzinfo=UTC)
SAMPLES = {
    "minimal": sample("minimal"),
    "minimalWithTime": sample("minimalWithTime", time=_NOON),
    "minimalWithRelativeSource": sample("minimalWithRelativeSource", source="#fragment"),
    "allCore": sample("allCore", **(_ALL_CORE | {"time": _NOON})),
    "simpleTextData": sample("simpleTextData", datacontenttype="text/plain", data=b"Simple text"),
    "allExtensionTypes": sample("allExtensionTypes", extensions=_EXTENSIONS),
}
"""The suite's golden events; JSON has no types for URIs, timestamps and bytes, so that these are texts."""

VALID_EVENTS: list[tuple[str, dict[str, Any], Event]] = [
    ("validMinimal", document("minimal"), SAMPLES["minimal"]),
    (
        "validMinimalWithNullForOptional",
        document("minimal", datacontenttype=None, dataschema=None, subject=None, time=None),
        SAMPLES["minimal"],
    ),
    ("validAllCoreAttributes", document("allCore", **_ALL_CORE), SAMPLES["allCore"]),
    *(
        (name, document("minimalWithTime", time=time), SAMPLES["minimalWithTime"])
        for name, time in (
            ("validMinimalWithTimeUtc", "2018-04-05T17:31:00Z"),
            ("validMinimalWithTimeToNanosecondsUtc", "2018-04-05T17:31:00.000000000Z"),
            ("validMinimalWithTimeUsingPositiveOffset", "2018-04-05T18:31:00+01:00"),
            ("validMinimalWithTimeUsingNegativeOffset", "2018-04-05T16:31:00-01:00"),
        )
    ),
    (
        "validRelativeSource",
        document("minimalWithRelativeSource", source="#fragment"),
        SAMPLES["minimalWithRelativeSource"],
    ),
    (
        "validSimpleTextData",
        document("simpleTextData", datacontenttype="text/plain", data="Simple text"),
        SAMPLES["simpleTextData"],
    ),
    ("validAllExtensionTypes", document("allExtensionTypes", **_EXTENSIONS), SAMPLES["allExtensionTypes"]),
]

# Each with the attribute that an error has to name.
INVALID_EVENTS: list[tuple[str, dict[str, Any], str]] = [
    (name, document("invalid", **members), attribute)
    for name, members, attribute in (
        ("invalidNoSpecVersion", {"specversion": ABSENT}, "specversion"),
        ("invalidNoId", {"id": ABSENT}, "id"),
        ("invalidNoType", {"type": ABSENT}, "type"),
        ("invalidNoSource", {"source": ABSENT}, "source"),
        ("invalidTimeGarbage", {"time": "lunchtime"}, "time"),
        ("invalidTimeToMinute", {"time": "2018-04-05T18:31Z"}, "time"),
        ("invalidTimeOffsetX", {"time": "2018-04-05T18:31:00X"}, "time"),
        ("invalidTimeOffsetOutOfRange", {"time": "2018-04-05T18:31:00+25:00"}, "time"),
        ("invalidTimeOffsetNonInteger", {"time": "2018-04-05T18:31:00+xx:00"}, "time"),
        ("invalidTimeOffsetHourOnly", {"time": "2018-04-05T18:31:00+05"}, "time"),
        ("invalidEmptyId", {"id": ""}, "id"),
        ("invalidEmptyType", {"type": ""}, "type"),
        ("invalidEmptySource", {"source": ""}, "source"),
        ("invalidEmptySpecVersion", {"specversion": ""}, "specversion"),
        ("invalidUnknownSpecVersion", {"specversion": "0.9"}, "specversion"),
        ("invalidNonRfc2046DataContentType", {"datacontenttype": "xyz"}, "datacontenttype"),
        ("invalidEmptyDataContentType", {"datacontenttype": ""}, "datacontenttype"),
        ("invalidEmptyDataSchema", {"dataschema": ""}, "dataschema"),
        ("invalidEmptySubject", {"subject": ""}, "subject"),
        ("invalidNumericId", {"id": 25}, "id"),
        ("invalidObjectId", {"id": {"xyz": "abc"}}, "id"),
        ("invalidCapitalizedExtension", {"MyExtension": "bad"}, "MyExtension"),
        ("invalidPunctuatedExtension", {"my.extension": "bad"}, "my.extension"),
        ("invalidNonIntegerExtensionValue", {"my.extension": 1.5}, "my.extension"),
        ("invalidBothDataAndDataBase64", {"data": "text", "data_base64": "eyAieHl6IjogMTIzIH0="}, "data_base64"),
    )
]

VALID_BATCHES: list[tuple[str, list[Any], list[Event]]] = [
    ("validBatchEmpty", [], []),
    ("validBatchMinimal", [document("minimal")], [SAMPLES["minimal"]]),
    ("validBatchMinimal2", [document("minimal"), document("minimal")], [SAMPLES["minimal"]] * 2),
    (
        "validBatchMinimalAndAllCore",
        [document("minimal"), document("allCore", **_ALL_CORE)],
        [SAMPLES["minimal"], SAMPLES["allCore"]],
    ),
    (
        "validBatchMinimalAndAllExtensionTypes",
        [document("minimal"), document("allExtensionTypes", **_EXTENSIONS)],
        [SAMPLES["minimal"], SAMPLES["allExtensionTypes"]],
    ),
]

# Each with the number of the event that is wrong, counted from 0, and with what an error has to name.
INVALID_BATCHES: list[tuple[str, list[Any], int, str]] = [
    (
        "invalidBatchMixedSpecVersions",
        [document("minimal1"), document("minimal2", specversion="0.9")],
        1,
        "specversion",
    ),
    ("invalidBatchContainingInvalidCloudEvent", [document("minimal", id=ABSENT)], 0, "id"),
    ("invalidBatchContainingNonObject", ["not an object", document("minimal1")], 0, "object"),
]
