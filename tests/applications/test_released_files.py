import subprocess
from collections.abc import Callable, Mapping
from pathlib import Path

import pytest

from pgratchet.core.errors import FilesError
from pgratchet.core.model import Problem
from pgratchet.files.layouts.own import own
from pgratchet.testing.released import NotComparableError, edits

Git = Callable[..., None]
FILES = {
    "001_users.sql": b"CREATE TABLE users ();\n",
    "001_users.down.sql": b"DROP TABLE users;\n",
    "002_orders.sql": b"CREATE TABLE orders ();\n-- end\n",
    "_draft.sql": b"not a migration",
    "README.md": b"not one either",
}


def write(folder: Path, files: Mapping[str, bytes]) -> None:
    for name, content in files.items():
        (folder / name).write_bytes(content)


@pytest.fixture
def git(tmp_path: Path) -> Git:
    def git(*arguments: str) -> None:
        settings = ("-c", "user.name=x", "-c", "user.email=x@example.org", "-c", "init.defaultBranch=main")
        subprocess.run(["git", *settings, *arguments], cwd=tmp_path, check=True, capture_output=True)

    return git


@pytest.fixture(params=["db/my versions", "."])
def folder(tmp_path: Path, git: Git, request: pytest.FixtureRequest) -> Path:
    """One in a repository that has released it, as v1 and in origin/main."""
    folder = tmp_path / str(request.param)
    folder.mkdir(parents=True, exist_ok=True)
    write(folder, FILES)
    git("init", "--quiet")
    git("add", ".")
    git("commit", "--quiet", "--message=first")
    git("tag", "v1")
    git("update-ref", "refs/remotes/origin/main", "HEAD")
    return folder


def said(problems: tuple[Problem, ...]) -> list[tuple[str, str]]:
    return [(Path(problem.path).name.partition(" ")[0], problem.message) for problem in problems]


def test_a_change_that_no_database_would_notice_is_no_edit(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (folder / "001_users.sql").rename(folder / "001_people.sql")
    (folder / "001_users.down.sql").unlink()
    write(
        folder,
        {
            "002_orders.sql": b"\xef\xbb\xbfCREATE TABLE orders ();\r\n-- end\r\n",
            "001_people.down.sql": b"DROP TABLE users CASCADE;",
            "003_new.sql": b"SELECT 1",
        },
    )
    assert edits(folder, "origin/main", own) == ()

    monkeypatch.setenv("GIT_DIR", "/nowhere")
    monkeypatch.setenv("GIT_WORK_TREE", "/nowhere")
    assert edits(folder, "origin/main", own) == ()


def test_an_edited_file_is_reported(folder: Path) -> None:
    write(folder, {"001_users.sql": b"CREATE TABLE people ();\n"})

    (problem,) = edits(folder, "origin/main", own)

    assert problem.path == str(folder / "001_users.sql")
    assert problem.message == "version 1 was edited after its release (in origin/main)"
    assert problem.cure == "restore the file and put the change into a new migration"


def test_a_removed_file_is_reported_with_the_commit_that_has_it(folder: Path) -> None:
    (folder / "002_orders.sql").unlink()

    (problem,) = edits(folder, "origin/main", own)

    assert problem.path.startswith("002_orders.sql of ")
    assert problem.message == "version 2 is released (in origin/main), and has no file here"


@pytest.mark.parametrize("other", [{}, {"002_other.sql": b"SELECT 1"}], ids=["gap", "taken"])
@pytest.mark.parametrize("content", [FILES["002_orders.sql"], b"-- Version: 003\nCREATE TABLE orders ();"])
def test_a_renumbered_file_is_reported(folder: Path, other: Mapping[str, bytes], content: bytes) -> None:
    (folder / "002_orders.sql").unlink()
    write(folder, {"003_orders.sql": content, **other})

    message = "it was released as version 2 (in origin/main), and is 3 now"
    assert said(edits(folder, "origin/main", own)) == [("003_orders.sql", message)]


def test_files_that_others_have_released_meanwhile_are_not_missed(folder: Path, git: Git) -> None:
    write(folder, {"003_theirs.sql": b"SELECT 1"})
    git("add", ".")
    git("commit", "--quiet", "--message=theirs")
    git("update-ref", "refs/remotes/origin/main", "HEAD")
    git("reset", "--quiet", "--hard", "v1")

    assert edits(folder, "origin/main", own) == ()


def test_a_folder_that_was_never_released_may_hold_anything(folder: Path) -> None:
    new = folder / "new"
    new.mkdir()
    write(new, FILES)

    assert edits(new, "origin/main", own) == ()


def test_a_folder_that_was_moved_is_compared_with_what_it_was(folder: Path, git: Git) -> None:
    other = folder / "other"
    other.mkdir()
    write(other, {"001_users.sql": b"SELECT 'of another service'"})
    write(folder, {"003_more.sql": b"SELECT 1"})
    git("add", ".")
    git("commit", "--quiet", "--message=two services")
    git("update-ref", "refs/remotes/origin/main", "HEAD")
    moved = folder / "moved"
    moved.mkdir()
    for name in ("001_users.sql", "002_orders.sql", "003_more.sql"):
        (folder / name).rename(moved / name)

    assert edits(moved, "origin/main", own) == ()

    write(moved, {"002_orders.sql": b"CREATE TABLE orders (id int)"})
    (moved / "003_more.sql").unlink()
    (folder / "001_users.sql").symlink_to(moved / "001_users.sql")

    assert said(edits(moved, "origin/main", own)) == [
        ("002_orders.sql", "version 2 was edited after its release (in origin/main)"),
        ("003_more.sql", "version 3 is released (in origin/main), and has no file here"),
    ]


def test_a_link_is_what_it_leads_to(folder: Path, git: Git) -> None:
    elsewhere = folder / "elsewhere"
    elsewhere.mkdir()
    write(elsewhere, {"shared.sql": b"SELECT 1\n"})
    (folder / "003_shared.sql").symlink_to("elsewhere/shared.sql")
    (folder / "a_folder.sql").symlink_to("elsewhere")
    git("add", ".")
    git("commit", "--quiet", "--message=link")
    git("update-ref", "refs/remotes/origin/main", "HEAD")
    (folder / "a_folder.sql").unlink()

    assert edits(folder, "origin/main", own) == ()

    write(elsewhere, {"shared.sql": b"SELECT 2\n"})

    message = "version 3 was edited after its release (in origin/main)"
    assert said(edits(folder, "origin/main", own)) == [("003_shared.sql", message)]


def test_a_link_out_of_the_repository_cannot_be_compared(
    folder: Path, git: Git, tmp_path_factory: pytest.TempPathFactory
) -> None:
    elsewhere = tmp_path_factory.mktemp("elsewhere") / "shared.sql"
    elsewhere.write_text("SELECT 1")
    (folder / "003_shared.sql").symlink_to(elsewhere)
    git("add", ".")
    git("commit", "--quiet", "--message=link")
    git("update-ref", "refs/remotes/origin/main", "HEAD")

    with pytest.raises(NotComparableError, match=rf"003_shared.sql of \w+ is a link out .*: {elsewhere}; put the file"):
        edits(folder, "origin/main", own)


def test_a_pattern_stands_for_the_newest_tag_that_matches(folder: Path, git: Git) -> None:
    write(folder, {"003_new.sql": b"SELECT 1"})
    git("add", ".")
    git("commit", "--quiet", "--message=second")
    git("tag", "v2-rc")
    write(folder, {"003_new.sql": b"SELECT 2"})

    assert edits(folder, "v1*", own) == ()
    assert said(edits(folder, "v*", own)) == [("003_new.sql", "version 3 was edited after its release (in v2-rc)")]


@pytest.mark.parametrize("ref", ["origin/elsewhere", "release-*"])
def test_a_checkout_without_the_ref_is_told_how_to_get_it(folder: Path, ref: str) -> None:
    with pytest.raises(NotComparableError) as caught:
        edits(folder, ref, own)

    assert f"this checkout has no {ref} to compare with" in str(caught.value)
    assert "fetch-depth: 0" in str(caught.value)


def test_a_checkout_without_the_history_is_told_how_to_get_it(folder: Path, git: Git) -> None:
    git("checkout", "--quiet", "--orphan", "shallow")
    git("commit", "--quiet", "--message=shallow")

    with pytest.raises(NotComparableError, match=r"nothing in common\); fetch it with its history"):
        edits(folder, "origin/main", own)


def test_a_machine_without_git_is_told_so(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(folder))

    with pytest.raises(NotComparableError, match="no git on PATH"):
        edits(folder, "origin/main", own)


def test_files_that_cannot_be_read_are_problems_of_their_own(folder: Path) -> None:
    write(folder, {"003_bad.sql": b"\xff"})

    with pytest.raises(FilesError, match=r"003_bad\.sql:1: not UTF-8"):
        edits(folder, "origin/main", own)
