"""An ASGI service that shares nothing with the one of this repository."""
