"""An HTTP/1.1 client for posts: one origin, requests sent as they are written, answers read within limits."""
