"""The one place where files, rules and server meet."""

import asyncio
import logging
import os
from collections.abc import Awaitable, Callable, Collection, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Literal, TypeVar

from pgratchet.core import arguments
from pgratchet.core.errors import BehindError, FilesError, PgratchetError, UsageError
from pgratchet.core.events import Done, Event, Tell, failed
from pgratchet.core.masking import Hidden, discreet, misplaced
from pgratchet.core.model import (
    Adoption,
    Catalogue,
    Destination,
    Direction,
    Entry,
    File,
    Finished,
    Kind,
    Lock,
    Plan,
    Verdict,
    WaitFor,
)
from pgratchet.core.plan import planning
from pgratchet.core.readiness import Course, Readiness
from pgratchet.files import directory
from pgratchet.files.directory import Location
from pgratchet.files.layout import Layout
from pgratchet.files.layouts import DEFAULT_LAYOUT
from pgratchet.postgres.ledger.history import History
from pgratchet.postgres.link import sql
from pgratchet.postgres.link.budget import Budget
from pgratchet.postgres.link.cancelling import cancelled_for_good
from pgratchet.postgres.link.dsn import Whereabouts, address_of
from pgratchet.postgres.link.session import Connect, Connection, connector, open_session, prepared, whereabouts
from pgratchet.postgres.link.sql import Limits, Table
from pgratchet.postgres.wire import backends
from pgratchet.runs import journal, telling
from pgratchet.runs.observing import compare
from pgratchet.runs.run import Run
from pgratchet.runs.settings import Settings
from pgratchet.runs.telling import Listener
from pgratchet.version import __version__

T = TypeVar("T")

"""The layout of a directory unless another one is given."""

_log = logging.getLogger("pgratchet")

MOST_INTEGER = 10**40
"""No layout has larger integers as versions, and they are not shown."""


class Migrator:
    """Brings one database in line with one directory of migrations.

    `dsn` is a PostgreSQL URL. `connect`, an async factory of asyncpg connections, may take its place, for example for
    passwords that rotate; create the connections with `statement_cache_size=0`. `migrations` is a folder, relative to
    the working directory, or a Traversable of importlib.resources. `layout` defines the names of its files and their
    versions.

    `budget` bounds, in seconds, the waiting of one run: for the server, for the lock, before another try. It never
    cancels a step under way. `connect_budget` bounds the first part of the waiting, until a server answers at all, be
    it with an error; None or 0 for no limit. `lock_timeout` and `statement_timeout` apply to each statement, in
    seconds, None or 0 for no limit; directives in a file override them. With `wait_for="database"`, `up`, `down`,
    `redo`, `rehearse` and `wait` also wait, within the budget, for what somebody else may be making: the database, the
    roles, the schema of the history, and the rights to them.

    `readers` are roles that may wait and check, nothing else. `trusted_owners` are roles that may own the history
    table, and the functions of triggers on it, beside those that a run trusts anyway: an owner of these runs code with
    the rights of the run (SECURITY.md).
    `journal` names a local file that gets a line for each finished step.

    A folder without migrations is an error for every run that needs its files, and the readiness is failed: a package
    or an image without its files would count as up to date. With `allow_empty` such a folder is a list of nothing.
    `status`, `plan` and `repair` only warn.

    `direct_dsn` leads straight to the server if `dsn` leads to a pooler: sessions that take the lock use it.
    `lock` forces the way in which runners are kept apart: "session", one lock from the first step to the last;
    "transaction", one in each step's transaction, as a run does by itself if it finds a pooler; "none", for engines
    without advisory locks, where only claims prevent that a migration is applied twice.

    `owner` is a role that the migrations run as, and that makes, owns and writes the history: the role that logs in
    must be a member of it, and needs no rights of its own. `listener` is called with each event of a run, in the
    event loop, and should return at once.

    A migrator holds no connection between calls, and each call is a run of its own. Raises UsageError, which names the
    argument and the values that it may have, for a wrong one; so does each method, before it does anything.
    """

    def __init__(  # noqa: PLR0913 - all but two are options, by keyword, with defaults
        self,
        dsn: str | None = None,
        migrations: Location = "migrations/versions",
        *,
        connect: Connect | None = None,
        layout: Layout = DEFAULT_LAYOUT,
        table: str = "public.schema_migrations",
        budget: float | None = None,
        connect_budget: float | None = 60.0,
        wait_for: WaitFor | Literal["server", "database"] = WaitFor.SERVER,
        lock_timeout: float | None = 5.0,
        statement_timeout: float | None = None,
        allow_late: bool = False,
        strict: bool = False,
        allow_empty: bool = False,
        readers: Collection[str] = (),
        trusted_owners: Collection[str] = (),
        journal: str | os.PathLike[str] | None = None,
        direct_dsn: str | None = None,
        lock: Lock | Literal["session", "transaction", "none"] | None = None,
        owner: str | None = None,
        listener: Listener | None = None,
    ) -> None:
        # Before anything can raise: a traceback may show the variables of this frame.
        address, factory, direct_address = _hidden(dsn), _hidden(connect), _hidden(direct_dsn)
        del dsn, connect, direct_dsn
        why = misplaced(
            migrations=migrations,
            layout=None if isinstance(layout, Layout) else layout,
            table=table,
            budget=budget,
            connect_budget=connect_budget,
            wait_for=wait_for,
            lock_timeout=lock_timeout,
            statement_timeout=statement_timeout,
            allow_late=allow_late,
            strict=strict,
            allow_empty=allow_empty,
            readers=readers,
            trusted_owners=trusted_owners,
            journal=journal,
            lock=lock,
            owner=owner,
            listener=None if callable(listener) else listener,
        )
        if why:
            del migrations, layout, table, budget, connect_budget, wait_for, lock_timeout, statement_timeout
            del allow_late, strict, allow_empty, readers, trusted_owners, journal, lock, owner, listener
            raise UsageError(why)
        if listener is not None:
            arguments.function("listener", listener, "a function that takes an event")
        telling.refuse_coroutine("listener", listener)
        _refuse_no_layout(layout)
        by = None if lock is None else Lock(arguments.choice("lock", lock, Lock))
        sessions, where = _sessions(address, factory)
        direct = sessions if direct_address is None else partial(connector, address_of(direct_address, "direct_dsn"))
        role = None if owner is None else sql.owner("owner", owner)
        self.migrations = _location(migrations)
        self._budget = partial(
            Budget,
            arguments.limit("budget", budget),
            arguments.limit("connect_budget", connect_budget) or None,
            absent=arguments.choice("wait_for", wait_for, WaitFor) == WaitFor.DATABASE,
        )
        self._allow_empty = arguments.switch("allow_empty", allow_empty)
        self._course = Course(layout.rank)
        self._applications = 0
        self._listener = listener
        parsed = Table.parse(table)
        self._destination = Destination(*where, str(parsed))
        self._journal = None if journal is None else Path(arguments.path("journal", journal))
        self._settings = Settings(
            connect=self._noting(sessions(sessions=by is Lock.SESSION)),
            direct=self._noting(direct(role, sessions=by is Lock.SESSION)),
            lock=by,
            history=History(parsed, role, sql.roles("trusted_owners", trusted_owners)),
            limits=Limits(
                arguments.limit("lock_timeout", lock_timeout) or 0.0,
                arguments.limit("statement_timeout", statement_timeout) or 0.0,
            ),
            tool_version=__version__,
            layout=layout,
            allow_late=arguments.switch("allow_late", allow_late),
            strict=arguments.switch("strict", strict),
            readers=sql.roles("readers", readers),
        )

    def __repr__(self) -> str:
        if "_settings" not in vars(self):
            return "Migrator(), whose arguments were refused"
        # The DSN is left out: it may hold a password.
        return f"Migrator(migrations={str(self.migrations)!r}, table={str(self._settings.history.table)!r})"

    @property
    def destination(self) -> Destination:
        """The history table, and the server and the database of the last session; any thread may read it.

        Before the first session they are those of the DSN, if that names one host.
        """
        return self._destination

    @property
    def readiness(self) -> Readiness:
        """The state of the schema after the last run of this migrator, or during the present one.

        Any thread may read it.
        """
        return self._course.readiness

    @contextmanager
    def serving(self) -> Iterator[None]:
        """Serve one application, from its start to its end, as the lifespan hook does.

        After the end of the last application nothing counts as applied: in tests, another application may start in the
        same process on another schema, and its gate must not open because of the readiness of this one.
        """
        self._applications += 1
        try:
            yield
        finally:
            self._applications -= 1
            if not self._applications:
                self._course.forget()

    async def up(self, to: str | int | None = None) -> tuple[Finished, ...]:
        """Return once everything, or everything up to `to`, is applied; the result has the steps of this run only.

        Raises MigrationFailedError, FilesError, HistoryError, ServerError, BudgetExceededError.
        """
        to = discreet(to)
        version = self._version(to)
        return await self._run(self._course.working(), lambda run: run.up(version))

    async def down(self, to: str | int | None = None, *, steps: int | None = None) -> tuple[Finished, ...]:
        """Revert everything above `to` (0 for everything), or the newest `steps` versions, one by default."""
        to, steps = discreet(to), discreet(steps)
        if to is not None and steps is not None:
            one, other = arguments.spelled("to"), arguments.spelled("steps")
            raise UsageError(f"give either {one}, a version to go back to, or {other}, a number of versions")
        if to is None:
            steps = arguments.count("steps", 1 if steps is None else steps)
        way = planning.WayDown(self._version(to), steps)
        return await self._run(
            self._course.working(), lambda run: run.carry_out([planning.Phase(Direction.DOWN, way.plan)])
        )

    async def redo(self, steps: int = 1) -> tuple[Finished, ...]:
        """Revert the newest `steps` versions and apply them again, under one lock."""
        way = planning.WayDown(None, arguments.count("steps", discreet(steps)))
        phases = [planning.Phase(Direction.DOWN, way.plan), planning.Phase(Direction.UP, way.plan_again)]
        return await self._run(self._course.working(), lambda run: run.carry_out(phases))

    async def wait(self) -> None:
        """Return once another runner has applied everything; needs only the right to read the history."""
        await self._run(nullcontext(self._course.looking()), Run.wait)

    async def check(self) -> None:
        """Return if everything is applied; raises BehindError if not, HistoryError if files and history disagree."""

        async def check(run: Run) -> None:
            entries = await run.look()
            if behind := planning.missing(entries):
                found, order = planning.looked(entries), [entry.version for entry in entries]
                raise BehindError(behind, found.interrupted, found.in_doubt, order)

        await self._run(nullcontext(self._course.looking()), check)

    async def plan(self, to: str | int | None = None) -> Plan:
        """Return the steps that `up` would take now; takes no lock and changes nothing."""
        to = discreet(to)
        version = self._version(to)
        run = Run(self._settings, await self._read(), self._budget(), _silent)
        entries = await cancelled_for_good(run.look)
        plan = planning.plan_up(entries, version)
        warnings = planning.refuse_disagreement(entries, self._settings.layout.rank, allow_late=True)
        return plan._replace(warnings=warnings + plan.warnings)

    async def status(self) -> tuple[Entry, ...]:
        """Return both sides of every version, in order; disagreements are states here, not errors."""
        catalogue = await self._read()

        async def look() -> tuple[Entry, ...]:
            async with open_session(self._settings.connect) as connection:
                rows = await self._settings.history.read(connection)
                at_work = await backends.at_work(connection, rows, self._settings.history)
                return compare(self._settings, catalogue.migrations, rows, at_work)

        return await cancelled_for_good(look)

    async def rehearse(self, to: str | int | None = None) -> tuple[Finished, ...]:
        """Do everything that `up` would do, under the lock, in one transaction, roll it back, and return the steps.

        Raises UsageError if a step cannot be rolled back, MigrationFailedError if one fails.
        """
        to = discreet(to)
        version = self._version(to)
        run = Run(self._settings, await self._read(needed=True), self._budget(), _silent)
        await cancelled_for_good(lambda: run.rehearse(version))
        return tuple(run.progress.finished)

    async def adopt(
        self, source: str = "public.schema_migrations", *, dry_run: bool = False, skip_failed: bool = False
    ) -> Adoption:
        """Record as applied the versions that a home-made runner has recorded in `source`; a dry run only returns them.

        They go into this migrator's table, or into `pgratchet_migrations` beside the source if both have the same name.
        Raises ForeignTableError for a table of another form, HistoryError for rows that contradict the files, and for
        versions that only failed, unless `skip_failed`.
        """
        from pgratchet.runs.adoption import adopt, foresee  # noqa: PLC0415 - done once in a project's life

        source, dry_run, skip_failed = discreet(source), discreet(dry_run), discreet(skip_failed)
        arguments.switch("dry_run", dry_run)
        arguments.switch("skip_failed", skip_failed)
        table = Table.parse(source, arguments.spelled("source"))
        migrations = {migration.version: migration for migration in (await self._read(needed=True)).migrations}
        if dry_run:
            return await foresee(self._settings, migrations, table, skip_failed=skip_failed)
        work = partial(adopt, self._settings, migrations, table, self._budget(), skip_failed=skip_failed)
        return await cancelled_for_good(work)

    async def repair(self, version: str | int, verdict: Verdict, reason: str) -> Entry:
        """Record a person's verdict about a version that no run can judge, and return both sides of it after that.

        `applied` and `not-applied` are about the whole migration: it counts as done, or nothing of it is there. `again`
        and `skip` are about the one statement in doubt: it did not take effect, or it did. `accept` is about the
        edited file of an applied version: its checksum replaces the one in the history. The row keeps the reason.
        Raises UsageError for an unknown verdict, HistoryError if the verdict does not fit the version, or a session is
        at work on it.
        """
        from pgratchet.core.plan.verdicts import Judgement  # noqa: PLC0415 - seldom done
        from pgratchet.runs.repairing import repair  # noqa: PLC0415 - the same

        version, reason = discreet(version), discreet(reason)
        said = Verdict(arguments.choice("verdict", verdict, Verdict))
        judgement = Judgement(
            self._canonical("version", version), said, arguments.prose(arguments.spelled("reason"), reason)
        )
        work = partial(repair, self._settings, await self._read(), judgement, self._budget())
        return await cancelled_for_good(work)

    def _noting(self, connect: Connect) -> Connect:
        """Return a factory of the same connections that keeps where each leads."""

        async def connect_and_note() -> Connection:
            connection = await connect()
            self._destination = Destination(*whereabouts(connection), self._destination.table)
            return connection

        return connect_and_note

    def _version(self, to: str | int | None) -> str | None:
        if to is None:
            return None
        # Before the layout is asked: not every layout has versions of this form.
        return planning.NOTHING if to in (0, planning.NOTHING) else self._canonical("to", to)

    def _canonical(self, what: str, version: str | int) -> str:
        fits = isinstance(version, str) or (type(version) is int and abs(version) < MOST_INTEGER)
        # A larger integer is not shown: str() refuses thousands of digits.
        text = str(version) if fits else "..."
        canonical = self._settings.layout.canonical(text) if fits else None
        if canonical is None:
            name = arguments.spelled(what)
            raise UsageError(f"{name} is '{text:.40}', which is no version: {self._settings.layout.form}")
        return canonical

    async def _read(self, *, needed: bool = False) -> Catalogue:
        """Return the migrations.

        If there are none, and that is not allowed, raises FilesError where some are `needed`, and logs a warning
        elsewhere.
        """
        layout, strict = self._settings.layout, self._settings.strict
        catalogue = await asyncio.to_thread(lambda: layout.parse(directory.read(self.migrations), strict=strict))
        if not catalogue.migrations and not self._allow_empty:
            problem = await asyncio.to_thread(directory.emptiness, self.migrations, layout.recognises)
            if needed:
                raise FilesError([problem])
            _log.warning("%s", problem)
        return catalogue

    async def _run(
        self, course: AbstractContextManager[Tell], work: Callable[[Run], Awaitable[None]]
    ) -> tuple[Finished, ...]:
        """Do `work` in a run, and return its finished steps; `course` takes its events, its end included."""
        finished: Sequence[Finished] = ()
        with course as take:
            budget = self._budget()

            def tell(event: Event) -> None:
                telling.tell(take, self._listener, event)
                budget.watch.take(event)

            run = None
            try:
                run = Run(self._settings, await self._read(needed=True), budget, tell)
                finished = run.progress.finished
                await cancelled_for_good(partial(work, run))
            except BaseException as error:
                if isinstance(error, PgratchetError):
                    error.finished = tuple(finished)
                tell(failed(error, run.progress.left if run else None))
                raise
            finally:
                if self._journal is not None:
                    journal.append(self._journal, finished)
            tell(Done(tuple(finished)))
        return tuple(finished)


def new(
    folder: str | os.PathLike[str], description: str, kind: Kind = Kind.SQL, *, layout: Layout = DEFAULT_LAYOUT
) -> tuple[Path, ...]:
    """Write the files of a new migration, whose version comes after the last one, and return their paths.

    Raises UsageError if they cannot be written or named, FilesError if the present files have problems; nothing is
    written then.
    """
    why = misplaced(
        folder=folder, description=description, kind=kind, layout=None if isinstance(layout, Layout) else layout
    )
    if why:
        del folder, description, kind, layout
        raise UsageError(why)
    arguments.path("folder", folder)
    arguments.text("description", description)
    language = Kind(arguments.choice("kind", kind, Kind))
    _refuse_no_layout(layout)

    def draft(files: Iterator[File]) -> Mapping[str, str]:
        return layout.draft(layout.parse(files).migrations, description, language, datetime.now(UTC))

    return directory.write(folder, draft)


def _silent(_: Event) -> None:
    """Drop an event: a plan or a rehearsal changes nothing, and must not change the readiness."""


def _hidden(value: T | None) -> Hidden[T] | None:
    return None if value is None else Hidden(value)


def _sessions(dsn: Hidden[str] | None, connect: Hidden[Connect] | None) -> tuple[Callable[..., Connect], Whereabouts]:
    """Return the maker of the factory of connections, and where they will lead, as far as that is known."""
    if dsn is not None and connect is None:
        address = address_of(dsn, "dsn")
        return partial(connector, address), address.whereabouts
    if dsn is None and connect is not None:
        return partial(prepared, connect), (None, None, None)
    raise UsageError("give either dsn or connect, a factory of connections")


def _location(migrations: Location) -> Location:
    # A Traversable is any object with its methods; nothing that is given by mistake has this one.
    if not callable(getattr(migrations, "iterdir", None)) or isinstance(migrations, os.PathLike):
        arguments.path("migrations", migrations)
    return migrations


def _refuse_no_layout(layout: Layout) -> None:
    if not isinstance(layout, Layout):
        raise UsageError("layout must be a Layout")
