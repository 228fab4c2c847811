"""How a version is written."""

LONGEST_VERSION = 18
"""Digits in a version: what a signed 64-bit number holds for certain."""


def canonical(version: str) -> str | None:
    """Return a version as it is written everywhere, without leading zeros; None for what is no version."""
    fits = version.isascii() and version.isdecimal() and len(version) <= LONGEST_VERSION
    return (version.lstrip("0") or "0") if fits else None
