"""
The CloudEvents codec, version 1.0.2: JSON event format, HTTP binding and NATS binding.

`data` is bytes, and is never changed: every sink gets the bytes that the producer sent, in whatever mode. Only the JSON
format embeds JSON data in its own text, without the blanks around it.
"""

from .content_types import BATCH_FORMAT, JSON_FORMAT
from .http_binding import (
    HttpMode,
    batch_from_http,
    from_http,
    http_mode,
    message_from_http,
    to_http,
    to_http_batched,
    to_http_structured,
)
from .json_format import decode_batch, decode_json, encode_batch, encode_exactly, encode_json
from .nats_binding import from_nats, to_nats, to_nats_structured

__all__ = [
    "BATCH_FORMAT",
    "JSON_FORMAT",
    "HttpMode",
    "batch_from_http",
    "decode_batch",
    "decode_json",
    "encode_batch",
    "encode_exactly",
    "encode_json",
    "from_http",
    "from_nats",
    "http_mode",
    "message_from_http",
    "to_http",
    "to_http_batched",
    "to_http_structured",
    "to_nats",
    "to_nats_structured",
]
