"""Neither half of a file of another tool runs."""

import pytest

from pgratchet import FilesError, Migrator
from tests.support import HISTORY, Write, ask, exists

pytestmark = pytest.mark.anyio

BOTH = "CREATE TABLE users (id int);\n\n-- {0}\nDROP TABLE users;\n"


@pytest.mark.parametrize("mark", ["migrate:down", "+goose Down", "Down Migration", "+migrate Down"])
async def test_neither_half_of_a_file_of_another_tool_runs(dsn: str, write: Write, mark: str) -> None:
    folder = write({"001_a.sql": BOTH.format(mark)})
    for verb in (Migrator.plan, Migrator.up, Migrator.rehearse):
        with pytest.raises(FilesError) as caught:
            await verb(Migrator(dsn, folder))
        assert [problem.line for problem in caught.value.problems] == [3]
    assert not await exists(dsn, "users")

    write({"001_a.sql": "CREATE TABLE users (id int);", "001_a.down.sql": "DROP TABLE users;"})
    assert [step.version for step in await Migrator(dsn, folder).up()] == ["1"]
    assert await exists(dsn, "users")


async def test_a_file_with_marks_that_is_applied_already_stays_applied(dsn: str, write: Write) -> None:
    folder = write({"001_a.sql": "CREATE TABLE users (id int);"})
    await Migrator(dsn, folder).up()
    write({"001_a.sql": BOTH.format("migrate:down")})
    (entry,) = await Migrator(dsn, folder).status()
    assert entry.migration is not None
    await ask(dsn, f"UPDATE {HISTORY} SET checksum = $1 RETURNING 1", entry.migration.checksum)
    assert await Migrator(dsn, folder).up() == ()
    await Migrator(dsn, folder).check()
