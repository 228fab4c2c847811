"""ASGI: migrations at the start of an application; no framework is imported."""
