"""ASGI: what an application's start-up needs; no framework is imported."""
