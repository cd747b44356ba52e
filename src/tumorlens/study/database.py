"""The database behind a study's store: its address, its driver, its errors."""

from __future__ import annotations

import time
from contextlib import contextmanager, nullcontext, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tumorlens.errors import ConfigError, RunError, TumorlensError
from tumorlens.extras import require
from tumorlens.urls import without_password, without_secrets

if TYPE_CHECKING:
    from collections.abc import Iterator

_CONNECT_S = 10
_LOCKED_S = 120
_ATTEMPTS = 5


def open_storage(url: str, *, heartbeat_s: int, grace_s: int) -> Any:
    """Return Optuna's storage at an address, its tables made where they are missing.

    Args:
        url: `sqlite:///FILE` or `postgresql://USER@HOST/NAME`.
        heartbeat_s: Seconds between two signs of life of a worker.
        grace_s: Seconds of silence after which a worker is taken for dead.

    Raises:
        ConfigError: The address is of another kind.
        MissingExtraError: Optuna or the driver is not installed.
    """
    storages, errors = require("optuna.storages"), require("sqlalchemy.exc")

    def open_once() -> Any:
        return storages.RDBStorage(
            _with_driver(url),
            engine_kwargs=_engine_arguments(url),
            heartbeat_interval=heartbeat_s,
            grace_period=grace_s,
        )

    for _ in range(_ATTEMPTS):
        # Somebody else may be making the tables at this moment.
        with suppress(errors.ProgrammingError, errors.IntegrityError):
            return open_once()
        time.sleep(1)
    return open_once()


def holds_study(url: str, name: str) -> bool:
    """Whether there is a study in a database; unlike Optuna, this makes nothing.

    Raises:
        ConfigError: The address is of another kind.
        MissingExtraError: Optuna or the driver is not installed.
        RunError: The database cannot be reached or used.
    """
    sqlalchemy = require("sqlalchemy")
    file = url.removeprefix("sqlite:///")
    # SQLite makes a file that it does not find.
    if file != url and not Path(file).exists():
        return False
    with readable(url):
        engine = sqlalchemy.create_engine(_with_driver(url), **_engine_arguments(url))
        with engine.connect() as connection:
            if not sqlalchemy.inspect(connection).has_table("studies"):
                return False
            query = sqlalchemy.text("SELECT 1 FROM studies WHERE study_name = :name")
            return connection.execute(query, {"name": name}).first() is not None


def file_lock(url: str) -> Any:
    """Return a lock for one machine's SQLite file, or nothing to wait for.

    SQLite does not lock a row that is read in order to be changed; a server does.
    """
    if not url.startswith("sqlite:///"):
        return nullcontext()
    path = Path(url.removeprefix("sqlite:///"))
    path.parent.mkdir(parents=True, exist_ok=True)
    return require("filelock").FileLock(f"{path}.lock", timeout=_LOCKED_S)


@contextmanager
def readable(url: str) -> Iterator[None]:
    """Turn what a database says into one line.

    Raises:
        ModuleNotFoundError: As it comes.
        RunError: The database cannot be reached or used.
        TumorlensError: As it comes.
    """
    try:
        yield
    except (TumorlensError, ModuleNotFoundError):
        raise
    except Exception as error:
        first = str(error.__cause__ or error).splitlines() or [type(error).__name__]
        raise RunError(
            f"the store {without_password(url)} cannot be used: "
            f"{without_secrets(first[0], url)[:200]}",
            hint="check the address, and that the database exists and lets you in; a "
            "password is kept nowhere, so give --store with it each time",
        ) from None


def _with_driver(url: str) -> str:
    kind, separator, rest = url.partition("://")
    if not separator or kind.partition("+")[0] not in ("sqlite", "postgresql"):
        raise ConfigError(
            f"expected --store sqlite:///FILE or postgresql://USER@HOST/NAME, got "
            f"{without_password(url)!r}",
            hint="leave it out for a file in the study's folder",
        )
    if kind == "postgresql":
        require("pg8000")
        return f"postgresql+pg8000://{rest}"
    return url


def _engine_arguments(url: str) -> dict[str, Any]:
    is_file = url.startswith("sqlite")
    return {
        "connect_args": {"timeout": _LOCKED_S if is_file else _CONNECT_S},
        # A connection that waits for the next question in minutes is one too many.
        "poolclass": require("sqlalchemy.pool").NullPool,
    }
