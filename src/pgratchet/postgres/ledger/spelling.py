"""Refuses rows whose version the layout spells otherwise: they would count as other versions."""

from collections.abc import Iterable

from pgratchet.core.errors import ServerError
from pgratchet.core.model import HistoryRow
from pgratchet.files.layout import Layout
from pgratchet.postgres.link.sql import Table, literal

MOST_SHOWN = 40
"""Characters of a version that is none."""


def refuse_misspelled(rows: Iterable[HistoryRow], layout: Layout, table: Table) -> None:
    """Raise ServerError, with the statement that corrects it, for a row whose version the layout writes otherwise."""
    for row in rows:
        # In a table of somebody else's it may be NULL, or of any type.
        if not isinstance(row.version, str) or layout.canonical(row.version) != row.version:
            raise ServerError(_misspelled(row.version, layout, table))


def _misspelled(version: object, layout: Layout, table: Table) -> str:
    text = str(version)
    row = f"the history has a row of version {text!a:.{MOST_SHOWN}}"
    where = f"WHERE {_condition(None if version is None else text)}"
    delete = f"DELETE FROM {table.quoted} {where}"
    if meant := layout.meant(text):
        return (
            f"{row}, which is '{meant}' as pgratchet writes it: it counts as another one; "
            f"UPDATE {table.quoted} SET version = {literal(meant)} {where}, or, where there is a row '{meant}' too, "
            f"{delete}"
        )
    return (
        f"{row}, which is no version: {layout.form}; find out which one is meant, and "
        f"UPDATE {table.quoted} SET version = '<its number>' {where}, or {delete}"
    )


def _condition(text: str | None) -> str:
    """Return what is true of the row alone, in characters that can be copied from any terminal."""
    if text is None:
        return "version IS NULL"
    if len(text) > MOST_SHOWN:
        return f"length(version) = {len(text)}"
    if text.isascii() and text.isprintable():
        return f"version = {literal(text)}"
    return "version = E'" + "".join(f"\\U{ord(each):08x}" for each in text) + "'"
