"""The least that a command line on the same packages can do: one command with ten options, and plain asyncpg.

Without `--dir` it runs one SELECT. With it, it applies the files of a directory under an advisory lock, each in a
transaction with the row that records it.
"""

# A command that has ten options, most of which do nothing.
# ruff: noqa: ARG001

import asyncio
from pathlib import Path
from typing import Annotated

import anyio  # noqa: F401 - the yardstick imports the same packages as pgratchet
import asyncpg
import typer

app = typer.Typer(add_completion=False)


@app.command()
def main(  # noqa: PLR0913 - ten options are the point of the yardstick
    *,
    dsn: Annotated[str, typer.Option(metavar="URL", envvar="DATABASE_URL", help="The database.")],
    folder: Annotated[str | None, typer.Option("--dir", metavar="FOLDER", help="The files.")] = None,
    table: Annotated[str, typer.Option(metavar="NAME", help="The history.")] = "applied",
    lock: Annotated[int, typer.Option(metavar="KEY", help="The key of the lock.")] = 1,
    owner: Annotated[str | None, typer.Option(metavar="ROLE", help="Not used.")] = None,
    journal: Annotated[str | None, typer.Option(metavar="FILE", help="Not used.")] = None,
    budget: Annotated[float | None, typer.Option(metavar="SECONDS", help="Not used.")] = None,
    timeout: Annotated[float | None, typer.Option(metavar="SECONDS", help="Not used.")] = None,
    strict: Annotated[bool, typer.Option("--strict", help="Not used.")] = False,
    verbose: Annotated[bool, typer.Option("--verbose", help="Not used.")] = False,
) -> None:
    """Run one SELECT, or apply the files of a directory."""
    asyncio.run(_select(dsn) if folder is None else _apply(dsn, sorted(Path(folder).iterdir()), table, lock))


async def _select(dsn: str) -> None:
    connection = await asyncpg.connect(dsn)
    await connection.fetch("SELECT 1")
    await connection.close()


async def _apply(dsn: str, files: list[Path], table: str, lock: int) -> None:
    connection = await asyncpg.connect(dsn)
    await connection.execute("SELECT pg_advisory_lock($1)", lock)
    await connection.execute(f"CREATE TABLE IF NOT EXISTS {table} (name text PRIMARY KEY)")
    applied = {row["name"] for row in await connection.fetch(f"SELECT name FROM {table}")}
    for file in files:
        if file.name not in applied:
            async with connection.transaction():
                await connection.execute(file.read_text())
                await connection.execute(f"INSERT INTO {table} VALUES ($1)", file.name)
    await connection.close()


if __name__ == "__main__":
    app()
