"""The HTTP interface: an ASGI application, and the listener that serves it beside the worker."""
