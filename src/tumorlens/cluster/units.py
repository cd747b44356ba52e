"""Units of work that many processes share: rows of a table, each held under a lease.

A *job* is a set of units, such as the shards of a large input. A process claims a unit,
renews its lease while it works, and closes the unit with a result. At most one process
holds the valid lease of a unit. The unit of a process that died is claimed again: on
the same machine at once, elsewhere when its lease has expired. What a unit means is
known to its job alone.

An expired lease does not prove that its owner is dead: a suspended laptop or a locked
database delays renewals too. A unit whose owner is a live process of this machine is
therefore never taken over. Another machine can take it over, and then two processes may
work on it for a while; each claim has a number, and what is written under an earlier
number is ignored.
"""

from __future__ import annotations

import os
import socket
import sqlite3
import sys
import threading
import time
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import cache, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeVar

import sqlalchemy as sa
from sqlalchemy.exc import DBAPIError
from sqlalchemy.pool import NullPool

from tumorlens.errors import ConfigError, RunError
from tumorlens.extras import require
from tumorlens.files import sha256_of_bytes
from tumorlens.urls import without_password, without_secrets

if TYPE_CHECKING:
    from sqlalchemy.engine import Connection

LEASE_S = 90
"""Seconds after its last renewal at which a lease expires."""
RENEW_S = 15

FORMAT = 1
"""Number of the layout of the two tables."""

_HINT = (
    "check the address, and that the database exists and lets you in; a password is "
    "kept nowhere, so give --store with it each time"
)
_DAMAGED = (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB)
_DAMAGED_HINT = (
    "the file is damaged: move it away and run the study again; finished runs are kept"
)
_PATIENCE_S = 60
"""How long a statement is tried again once the database has been reached."""
_RETRY_S = 1
_CONNECT_S = 10
_LOCKED_S = 120
_ADVISORY_LOCK = 0x7465_6D6F
"""Key of the PostgreSQL lock that is held while tables are made; any number will do."""

State = Literal["waiting", "running", "finished", "failed"]
Result = TypeVar("Result")

_TABLES = sa.MetaData()
_JOBS = sa.Table(
    "tumorlens_jobs",
    _TABLES,
    sa.Column("name", sa.String, primary_key=True),
    sa.Column("format", sa.Integer, nullable=False),
    sa.Column("fingerprint", sa.String, nullable=False),
)
_UNITS = sa.Table(
    "tumorlens_units",
    _TABLES,
    sa.Column("job", sa.String, primary_key=True),
    sa.Column("name", sa.String, primary_key=True),
    sa.Column("position", sa.Integer, nullable=False),
    sa.Column("state", sa.String, nullable=False),
    sa.Column("payload", sa.JSON, nullable=False),
    sa.Column("notes", sa.JSON, nullable=False),
    sa.Column("result", sa.JSON(none_as_null=True)),
    sa.Column("reason", sa.String),
    sa.Column("attempt", sa.Integer, nullable=False),
    sa.Column("machine", sa.String),
    sa.Column("pid", sa.Integer),
    sa.Column("process_start", sa.Double),
    sa.Column("place", sa.String),
    # Seconds since 1970, by the clock of the database's server.
    sa.Column("lease_until", sa.Double),
    sa.Column("started_at", sa.Double),
    sa.Column("ended_at", sa.Double),
    sa.Column("earlier_s", sa.Double, nullable=False),
)
_NO_OWNER: dict[str, Any] = dict.fromkeys(
    ("machine", "pid", "process_start", "lease_until")
)


class StoreError(RunError):
    """The database cannot be reached or used."""


class LeaseLostError(Exception):
    """Another process has taken the unit over, so its work here is void."""


@dataclass(frozen=True)
class Unit:
    """One row of the table."""

    name: str
    state: State
    payload: Mapping[str, Any]
    """Data of the unit, as it was added."""
    notes: Mapping[str, Any]
    """Notes of its owners, kept from one attempt to the next."""
    result: Any
    reason: str | None
    """Why it failed."""
    attempt: int
    """Number of its claims so far."""
    machine: str | None
    """Identity of the owner's machine; `None` without an owner, as the next two."""
    pid: int | None
    process_start: float | None
    place: str | None
    """Host and folder where it runs or ran last, for display."""
    lease_until: float | None
    seconds: float | None
    """From the start of its last attempt to its end, or to when it was last known to
    run."""
    earlier_s: float
    """Seconds of the attempts before the last."""

    def is_owned_here(self) -> bool:
        """Whether a process of this machine holds the unit, alive or dead."""
        return self.state == "running" and self.machine == machine_identity()

    def is_orphan(self) -> bool:
        """Whether a process of this machine held the unit and has ended."""
        if not self.is_owned_here() or self.pid is None:
            return False
        return not _is_alive(self.pid, self.process_start or 0.0)


class Lease:
    """The right of this process, and no other, to work on a unit.

    A thread renews it until the unit is closed. While the database is away the work
    goes on; `check` fails once another process is known to have taken over.
    """

    def __init__(self, units: Units, unit: Unit, *, renew_s: float) -> None:
        self.unit = unit
        self._units = units
        self._notes = dict(unit.notes)
        self._renew_s = renew_s
        self._is_closed = threading.Event()
        self._fault: BaseException | None = None
        self._thread = threading.Thread(target=self._keep, daemon=True)
        self._thread.start()

    @property
    def notes(self) -> Mapping[str, Any]:
        """Notes of the unit's owners."""
        return self._notes

    def check(self) -> None:
        """Raise what the renewing thread met.

        Raises:
            LeaseLostError: Another process has taken the unit over.
            Exception: A fault of ours in the renewing thread.
        """
        if self._fault is not None:
            raise self._fault

    def note(self, **notes: Any) -> None:
        """Store notes that outlive this process.

        Raises:
            LeaseLostError: Another process has taken the unit over.
            StoreError: The database has been away for too long.
        """
        self.check()
        self._notes |= notes
        if not self._units.change(self.unit, notes=self._notes):
            raise LeaseLostError(self.unit.name)

    def finish(self, result: Any) -> None:
        """Close the unit with its result. Raises `StoreError` as `note` does."""
        self._close(state="finished", result=result)

    def fail(self, reason: str) -> None:
        """Close the unit with the reason why it has no result."""
        self._close(state="failed", reason=reason)

    def release(self) -> None:
        """Give the unit back, to be claimed again."""
        self._stop()
        self._units.take_back(self.unit, notes=self._notes)

    def _close(self, **values: Any) -> None:
        self._stop()
        # If another process has taken over, its result counts, and this does nothing.
        self._units.change(self.unit, ends=True, **values)

    def _stop(self) -> None:
        self._is_closed.set()
        self._thread.join()

    def _keep(self) -> None:
        last = time.monotonic()
        is_reported = False
        while not self._is_closed.wait(self._renew_s):
            try:
                if not self._units.renew(self.unit):
                    self._fault = LeaseLostError(self.unit.name)
                    return
                last = time.monotonic()
                is_reported = False
            except StoreError as error:
                if not is_reported and time.monotonic() - last > self._units.lease_s:
                    is_reported = True
                    sys.stderr.write(
                        f"{self.unit.name}: not renewed for {self._units.lease_s:g} s, "
                        f"the work goes on: {error.problem}\n"
                    )
            except BaseException as error:
                # Raised by `check`, in the thread that does the work.
                self._fault = error
                return


class Units:
    """The units of one job in a database."""

    def __init__(
        self, url: str, job: str, *, lease_s: float = LEASE_S, renew_s: float = RENEW_S
    ) -> None:
        """Open a database, and make the tables if they are missing.

        Args:
            url: `sqlite:///FILE` or `postgresql://USER@HOST/NAME`.
            job: Name of the job, which need not exist yet: see `enter`.
            lease_s: Seconds after its last renewal at which a lease expires.
            renew_s: Seconds between two renewals.

        Raises:
            ConfigError: The address is of another kind.
            MissingExtraError: The database's driver is not installed.
            StoreError: The database cannot be reached or used, or its tables are of
                another version.
        """
        self.lease_s = lease_s
        self._renew_s = renew_s
        self._job = job
        self._url = url
        if file := _sqlite_file(url):
            file.parent.mkdir(parents=True, exist_ok=True)
        self._engine = _engine(url)
        self._patience_s = 0.0
        self._run(self._make_tables)
        self._patience_s = _PATIENCE_S

    def enter(self, fingerprint: str) -> str:
        """Enter the job if it is not there; return the fingerprint that it has."""

        def enter(connection: Connection, _: float) -> str:
            if known := self._lock_job(connection):
                return known
            row = {"name": self._job, "format": FORMAT, "fingerprint": fingerprint}
            connection.execute(sa.insert(_JOBS).values(row))
            return fingerprint

        return self._run(enter)

    def add(self, units: Iterable[tuple[str, Mapping[str, Any]]]) -> None:
        """Add units by name and payload, behind those of the job; known names stay."""

        def add(connection: Connection, _: float) -> None:
            self._lock_job(connection)
            query = sa.select(_UNITS.c.name).where(_UNITS.c.job == self._job)
            known = set(connection.execute(query).scalars())
            new = {name: payload for name, payload in units if name not in known}
            rows = [
                {
                    "job": self._job,
                    "name": name,
                    "position": position,
                    "state": "waiting",
                    "payload": dict(payload),
                    "notes": {},
                    "attempt": 0,
                    "earlier_s": 0.0,
                }
                for position, (name, payload) in enumerate(new.items(), len(known))
            ]
            if rows:
                connection.execute(sa.insert(_UNITS), rows)

        self._run(add)

    def all(self) -> list[Unit]:
        """Return the units in the order in which they were added."""
        return self._run(self._select, is_write=False)

    def num_free(self, *, accepts: Callable[[str], bool] = lambda _: True) -> int:
        """Return how many units could be claimed now. Arguments: as of `claim`."""

        def count(connection: Connection, now: float) -> int:
            open_units = self._select(connection, now, only_open=True)
            return sum(
                _is_free(one, now=now) and accepts(one.name) for one in open_units
            )

        return self._run(count, is_write=False)

    def claim(
        self, *, accepts: Callable[[str], bool] = lambda _: True, place: str = ""
    ) -> Lease | None:
        """Return a lease on the first unit that is free; `None` without one.

        Args:
            accepts: Whether a unit of this name may be claimed.
            place: Folder where the work is done, for display.
        """

        def claim(connection: Connection, now: float) -> Unit | None:
            open_units = self._select(connection, now, only_open=True)
            for unit in filter(partial(_is_free, now=now), open_units):
                if not accepts(unit.name):
                    continue
                # One of several processes that saw it free gets the row: a unit that
                # was claimed or renewed meanwhile no longer matches.
                query = (
                    sa.select(_UNITS.c.name)
                    .where(self._is_at(unit), _UNITS.c.state == unit.state)
                    .where(_UNITS.c.lease_until.is_not_distinct_from(unit.lease_until))
                    .with_for_update(skip_locked=True)
                )
                if connection.execute(query).first() is not None:
                    return self._take(connection, unit, now, place)
            return None

        unit = self._run(claim)
        return None if unit is None else Lease(self, unit, renew_s=self._renew_s)

    def renew(self, unit: Unit) -> bool:
        """Renew a lease, without patience; return whether it is still held."""

        def renew(connection: Connection, now: float) -> bool:
            return self._update(connection, unit, lease_until=now + self.lease_s)

        return self._run(renew, patience_s=0)

    def change(self, unit: Unit, *, ends: bool = False, **values: Any) -> bool:
        """Change columns of a unit that runs; return whether it is still held.

        Args:
            unit: As it was claimed.
            ends: Whether the attempt is over.
            values: Column -> value.
        """

        def change(connection: Connection, now: float) -> bool:
            ended = {"ended_at": now, "lease_until": None} if ends else {}
            return self._update(connection, unit, **values, **ended)

        return self._run(change)

    def take_back(self, unit: Unit, *, notes: Mapping[str, Any]) -> bool:
        """Make a unit that runs wait again; return whether it still ran.

        Args:
            unit: One of this process, or one whose owner is dead.
            notes: Take the place of its notes.
        """

        def take_back(connection: Connection, now: float) -> bool:
            earlier_s: Any = _UNITS.c.earlier_s + now - _UNITS.c.started_at
            if unit.is_orphan():  # it may have died long ago
                earlier_s = unit.earlier_s + (unit.seconds or 0.0)
            values = {
                "state": "waiting",
                "notes": dict(notes),
                "earlier_s": earlier_s,
                "started_at": None,
                "place": None,
            }
            return self._update(connection, unit, **values, **_NO_OWNER)

        return self._run(take_back)

    def reopen_failed(self, *, keep_notes: Callable[[str], bool]) -> int:
        """Make the failed units wait again; return how many.

        Args:
            keep_notes: Whether the note of this name is kept.
        """

        def reopen(connection: Connection, now: float) -> int:
            num_reopened = 0
            for unit in self._select(connection, now):
                kept = {key: unit.notes[key] for key in filter(keep_notes, unit.notes)}
                values = {
                    "state": "waiting",
                    "notes": kept,
                    "reason": None,
                    "earlier_s": unit.earlier_s + (unit.seconds or 0.0),
                    **dict.fromkeys(("started_at", "ended_at", "place")),
                }
                query = (
                    sa.update(_UNITS)
                    .where(self._is_at(unit), _UNITS.c.state == "failed")
                    .values(values | _NO_OWNER)
                )
                num_reopened += connection.execute(query).rowcount
            return num_reopened

        return self._run(reopen)

    def _make_tables(self, connection: Connection, _: float) -> None:
        if connection.dialect.name == "postgresql":
            # "IF NOT EXISTS" alone fails where two make a table at the same moment.
            lock = sa.func.pg_advisory_xact_lock(_ADVISORY_LOCK)
            connection.execute(sa.select(lock))
        if not sa.inspect(connection).has_table(_JOBS.name):
            _refuse_optuna(connection, self._url)
        _TABLES.create_all(connection)
        _check_format(connection, self._url)

    def _lock_job(self, connection: Connection) -> str | None:
        """Return the job's fingerprint; no other process adds to the job meanwhile."""
        query = (
            sa.select(_JOBS.c.fingerprint)
            .where(_JOBS.c.name == self._job)
            .with_for_update()
        )
        if (known := connection.execute(query).scalar()) is not None:
            return str(known)
        if connection.dialect.name == "postgresql":
            lock = sa.func.pg_advisory_xact_lock(_ADVISORY_LOCK)
            connection.execute(sa.select(lock))
            known = connection.execute(query).scalar()
        return None if known is None else str(known)

    def _select(
        self, connection: Connection, now: float, *, only_open: bool = False
    ) -> list[Unit]:
        query = (
            sa.select(_UNITS)
            .where(_UNITS.c.job == self._job)
            .order_by(_UNITS.c.position)
        )
        if only_open:
            query = query.where(_UNITS.c.state.in_(("waiting", "running")))
        rows = connection.execute(query).mappings().all()
        return [self._unit_of(row, now) for row in rows]

    def _unit_of(self, row: Mapping[Any, Any], now: float) -> Unit:
        names = Unit.__dataclass_fields__.keys() - {"seconds"}
        unit = Unit(**{name: row[name] for name in names}, seconds=None)
        if row["started_at"] is None:
            return unit
        end = row["ended_at"] or now
        if unit.lease_until is not None:
            # An owner that is dead may have died long ago. It was last known to live
            # at its last renewal, and may have lived elsewhere until its lease expired.
            known_s = self.lease_s if unit.is_orphan() else 0.0
            end = min(end, unit.lease_until - known_s)
        return replace(unit, seconds=max(0.0, end - row["started_at"]))

    def _is_at(self, unit: Unit) -> sa.ColumnElement[bool]:
        return sa.and_(
            _UNITS.c.job == self._job,
            _UNITS.c.name == unit.name,
            _UNITS.c.attempt == unit.attempt,
        )

    def _update(self, connection: Connection, unit: Unit, **values: Any) -> bool:
        query = (
            sa.update(_UNITS)
            .where(self._is_at(unit), _UNITS.c.state == "running")
            .values(values)
        )
        return connection.execute(query).rowcount == 1

    def _take(self, connection: Connection, unit: Unit, now: float, place: str) -> Unit:
        # It has seconds if it is taken over from a process that died.
        earlier_s = unit.earlier_s + (unit.seconds or 0.0)
        pid, process_start = _this_process()
        values = {
            "state": "running",
            "attempt": unit.attempt + 1,
            "machine": machine_identity(),
            "pid": pid,
            "process_start": process_start,
            "place": f"{socket.gethostname()}:{place}",
            "lease_until": now + self.lease_s,
            "started_at": now,
            "ended_at": None,
            "earlier_s": earlier_s,
        }
        connection.execute(sa.update(_UNITS).where(self._is_at(unit)).values(values))
        query = sa.select(_UNITS).where(
            _UNITS.c.job == self._job, _UNITS.c.name == unit.name
        )
        return self._unit_of(connection.execute(query).mappings().one(), now)

    def _run(
        self,
        work: Callable[[Connection, float], Result],
        *,
        is_write: bool = True,
        patience_s: float | None = None,
    ) -> Result:
        """Return what `work` returns, given a transaction and the time of its start.

        Raises:
            StoreError: The database cannot be used, however often it was tried.
        """
        patience_s = self._patience_s if patience_s is None else patience_s
        deadline = time.monotonic() + patience_s
        while True:
            try:
                with _connect(self._engine) as connection:
                    connection.execution_options(is_write=is_write)
                    with connection.begin():
                        return work(connection, _now(connection))
            except (DBAPIError, OSError) as error:
                if time.monotonic() >= deadline:
                    problem, hint = _explain(error, self._url)
                    raise StoreError(problem, hint=hint) from None
            time.sleep(_RETRY_S)


def has_job(url: str, job: str) -> bool:
    """Return whether a database holds a job. Nothing is made, unlike by `Units`.

    Raises:
        ConfigError: The address is of another kind.
        MissingExtraError: The database's driver is not installed.
        StoreError: The database cannot be reached or used.
    """
    file = _sqlite_file(url)
    # SQLite makes a file that it does not find.
    if file is not None and not file.exists():
        return False
    try:
        with _connect(_engine(url)) as connection:
            if not sa.inspect(connection).has_table(_JOBS.name):
                _refuse_optuna(connection, url)
                return False
            _check_format(connection, url)
            query = sa.select(_JOBS.c.name).where(_JOBS.c.name == job)
            return connection.execute(query).first() is not None
    except (DBAPIError, OSError) as error:
        problem, hint = _explain(error, url)
        raise StoreError(problem, hint=hint) from None


@cache
def machine_identity() -> str:
    """Return an identity of this machine, the same for all its processes.

    A host name is not enough: containers and fresh laptops share it. Two containers on
    one machine are two machines here, as neither can see whether a process of the other
    is alive; a machine that was restarted is another one too.
    """
    parts = []
    for name in ("/etc/machine-id", "/proc/sys/kernel/random/boot_id"):
        with suppress(OSError):
            parts.append(Path(name).read_text(encoding="ascii").strip())
    with suppress(OSError):
        parts.append(str(Path("/proc/self/ns/pid").readlink()))
    # Hashed, as machine-id(5) asks for: the number itself is confidential.
    return sha256_of_bytes(" ".join(parts or [_without_proc()]).encode())[:32]


def _without_proc() -> str:
    import uuid

    return f"{socket.gethostname()} {uuid.getnode():x}"


def _this_process() -> tuple[int, float]:
    psutil = require("psutil")
    return os.getpid(), psutil.Process().create_time()


def _is_alive(pid: int, started: float) -> bool:
    psutil = require("psutil")
    try:
        # Process numbers are reused, so the start counts too. psutil rounds to 10 ms.
        process = psutil.Process(pid)
        is_same = abs(process.create_time() - started) < 1
        return bool(is_same and process.status() != psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return False


def _is_free(unit: Unit, *, now: float) -> bool:
    if unit.state != "running":
        return unit.state == "waiting"
    if unit.is_owned_here():
        return unit.is_orphan()
    return unit.lease_until is not None and unit.lease_until <= now


def _now(connection: Connection) -> float:
    """Return the time by the one clock that all owners share."""
    if connection.dialect.name == "sqlite":
        return time.time()
    clock = sa.extract("epoch", sa.func.clock_timestamp())
    return float(connection.execute(sa.select(clock)).scalar_one())


def _engine(url: str) -> sa.Engine:
    kind, separator, rest = url.partition("://")
    if not separator or kind.partition("+")[0] not in ("sqlite", "postgresql"):
        raise ConfigError(
            f"expected --store sqlite:///FILE or postgresql://USER@HOST/NAME, got "
            f"{without_password(url)!r}",
            hint="leave it out for a file beside the results",
        )
    if kind == "postgresql":
        require("pg8000")
        url = f"postgresql+pg8000://{rest}"
    is_file = url.startswith("sqlite")
    # A connection that idles for minutes between two renewals is one too many.
    engine = sa.create_engine(
        url,
        connect_args={"timeout": _LOCKED_S if is_file else _CONNECT_S},
        poolclass=NullPool,
    )
    if is_file:
        sa.event.listen(engine, "connect", _leave_transactions_to_us)
        sa.event.listen(engine, "begin", _begin_sqlite)
    return engine


def _connect(engine: sa.Engine) -> Connection:
    """Return a connection. Whatever a driver raises is an error of the connection.

    Raises:
        ConnectionError: The driver failed, as pg8000 does without a password.
        DBAPIError: The database refused.
        OSError: It cannot be reached.
    """
    try:
        return engine.connect()
    except (DBAPIError, OSError):
        raise
    except Exception as error:
        raise ConnectionError(f"{type(error).__name__}: {error}") from error


def _leave_transactions_to_us(connection: Any, _: object) -> None:
    connection.isolation_level = None


def _begin_sqlite(connection: Connection) -> None:
    # By default SQLite locks only when something is written: of two processes that have
    # read the same free unit, one would fail at its write and not wait for the other.
    is_write = connection.get_execution_options().get("is_write")
    connection.exec_driver_sql("BEGIN IMMEDIATE" if is_write else "BEGIN")


def _sqlite_file(url: str) -> Path | None:
    path = url.removeprefix("sqlite:///")
    return None if path == url else Path(path)


def _refuse_optuna(connection: Connection, url: str) -> None:
    """Refuse a database that an earlier version of tumorlens filled through Optuna.

    Raises:
        StoreError: It has Optuna's tables, and none of ours.
    """
    if sa.inspect(connection).has_table("trial_user_attributes"):
        raise StoreError(
            f"the store {without_password(url)} was made by an earlier version of "
            "tumorlens, and this one does not read it",
            hint="start again from the study's original TOML file with another --out, "
            "and another --store where one was given; the run folders are untouched, "
            "and tumorlens compare takes them",
        )


def _check_format(connection: Connection, url: str) -> None:
    found = connection.execute(sa.select(sa.func.max(_JOBS.c.format))).scalar()
    if found is not None and found != FORMAT:
        raise StoreError(
            f"expected format {FORMAT} in the store {without_password(url)}, got "
            f"{found}",
            hint="use the version of tumorlens that made it, or give another --store",
        )


def _explain(error: Exception, url: str) -> tuple[str, str]:
    """Return an error of a database as one line without a password, and a hint."""
    cause = getattr(error, "orig", None) or error
    first = str(cause).splitlines() or [type(cause).__name__]
    problem = without_secrets(first[0], url)[:200]
    # The low byte is the kind of the error.
    is_damaged = getattr(cause, "sqlite_errorcode", 0) & 0xFF in _DAMAGED
    hint = _DAMAGED_HINT if is_damaged else _HINT
    return f"the store {without_password(url)} cannot be used: {problem}", hint
