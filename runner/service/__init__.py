"""The life of long-lived parts: loops that survive their errors, back-off, the watch over the event loop."""
