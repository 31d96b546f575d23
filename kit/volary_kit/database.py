"""Postgres by explicit transactions, bounded by the call's deadline, honest about the unknown."""

from __future__ import annotations

import asyncio
import logging
import math
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Any, TypeAlias

import asyncpg
from sqlalchemy import Executable, Row, event, text
from sqlalchemy.engine import make_url
from sqlalchemy.exc import DBAPIError, DisconnectionError, InterfaceError, OperationalError
from sqlalchemy.exc import TimeoutError as PoolTimeout
from sqlalchemy.ext.asyncio import AsyncEngine, AsyncSession, create_async_engine

from volary_kit.calls import find_call
from volary_kit.errors import Aborted, DeadlineExceeded, Unavailable, VolaryError

log = logging.getLogger(__name__)

Transaction: TypeAlias = AsyncSession
AfterCommit = Callable[[], None]

POOL_SIZE = 5  # seven services, two replicas, on a server of 100 connections
SINGLE_POOL_SIZE = 1  # of writes that come one after another; more connections when they do not
POOL_WAIT_S = 5.0
CONNECT_S = 10.0
LONGEST_STATEMENT_S = 60.0  # of background work, which has no deadline
LONGEST_LOCK_S = 10.0
RETRY_AFTER_S = 0.2
AFTER_COMMIT = "volary_after_commit"


@dataclass
class _Ambient:
    """The transaction that a remembered call runs in, and the task that may join it."""

    database: Database
    session: AsyncSession
    task: asyncio.Task[Any] | None = field(default_factory=asyncio.current_task)
    is_open: bool = True

    def is_joinable(self, database: Database) -> bool:
        """Say whether the running task may use this transaction."""
        return (
            self.is_open
            and self.database is database
            and self.task is not None
            and self.task is asyncio.current_task()
        )


_ambient: ContextVar[_Ambient | None] = ContextVar("volary_transaction", default=None)


class Database:
    """One service's schema on a Postgres.

    A transaction is an `AsyncSession` that never flushes or loads behind one's back: use
    `await transaction.execute(statement)`. It commits when the block ends and rolls back when
    the block raises. Failures come as errors of the tree: Unavailable `DATABASE_UNAVAILABLE`
    (nothing happened), Unavailable `OUTCOME_UNKNOWN` (the commit may or may not have), Aborted
    `TRANSACTION_CONFLICT`, DeadlineExceeded. Violated constraints stay `IntegrityError`, for
    the store that knows what they mean.
    """

    def __init__(self, url: str, schema: str, *, pool_size: int = POOL_SIZE) -> None:
        self.url = async_url(url)
        self.schema = schema
        self.engine = new_engine(url, schema, pool_size=pool_size)
        self._single = _single_engine(url, schema)

    @asynccontextmanager
    async def transaction(self) -> AsyncIterator[Transaction]:
        """Open a transaction; within a remembered call, a savepoint of that call's transaction."""
        ambient = _ambient.get()
        if ambient is not None and ambient.is_joinable(self):
            async with ambient.session.begin_nested():
                yield ambient.session
            return
        async with self._begun() as session:
            yield session

    @asynccontextmanager
    async def read(self) -> AsyncIterator[Transaction]:
        """Open a read-only transaction; it sees the own writes of a remembered call."""
        ambient = _ambient.get()
        if ambient is not None and ambient.is_joinable(self):
            yield ambient.session
            return
        async with self._begun(read_only=True) as session:
            yield session

    @asynccontextmanager
    async def enlisting(self) -> AsyncIterator[Transaction]:
        """Open a transaction that every `transaction()` of this task joins until the block ends."""
        async with self._begun() as session:
            ambient = _Ambient(self, session)
            token = _ambient.set(ambient)
            try:
                yield session
            finally:
                ambient.is_open = False
                _ambient.reset(token)

    @asynccontextmanager
    async def _begun(self, *, read_only: bool = False) -> AsyncIterator[AsyncSession]:
        async with AsyncSession(self.engine, expire_on_commit=False, autoflush=False) as session:
            with translated():
                await session.execute(_limits(read_only=read_only))
            with translated():
                yield session
            with translated(is_commit=not read_only):
                await session.commit()
        for callback in session.info.get(AFTER_COMMIT, ()):
            callback()

    async def at_once(
        self, statement: Executable, values: Mapping[str, Any] | None = None
    ) -> Sequence[Row[Any]]:
        """Run one statement that is a whole transaction: one round trip where others take five.

        A statement that is made once and gets its parameters as `values` is not put together
        anew each time, which takes longer than Postgres does. Durable when it returns, and apart
        from a remembered call's transaction. Raises as a commit does: Unavailable
        `OUTCOME_UNKNOWN` also when no answer came in time.
        """
        left_s = min(remaining_s(), LONGEST_STATEMENT_S)
        try:
            async with asyncio.timeout(left_s), self._single.connect() as connection:
                with translated(is_commit=True):
                    return (await connection.execute(statement, values)).all()
        except TimeoutError as error:
            raise _broken(is_commit=True) from error

    async def ping(self) -> None:
        """Answer whether the database does; raise Unavailable if not."""
        async with self.read() as session:
            await session.execute(text("SELECT 1"))

    async def close(self) -> None:
        """Close every pooled connection."""
        await self.engine.dispose()
        await self._single.dispose()


def on_commit(transaction: Transaction, callback: AfterCommit) -> None:
    """Call back once the transaction is committed; never when it rolls back."""
    transaction.info.setdefault(AFTER_COMMIT, []).append(callback)


def async_url(url: str) -> str:
    """Return a Postgres URL with the driver that this module speaks through."""
    parsed = make_url(url).set(drivername="postgresql+asyncpg")
    return parsed.render_as_string(hide_password=False)


def new_engine(url: str, schema: str, *, pool_size: int = POOL_SIZE, **options: Any) -> AsyncEngine:
    """Return an engine whose connections look into one schema only."""
    return create_async_engine(
        async_url(url),
        pool_size=pool_size,
        max_overflow=pool_size,
        pool_timeout=POOL_WAIT_S,
        **({"pool_pre_ping": True} | options),
        connect_args={
            "timeout": CONNECT_S,
            "server_settings": {
                "search_path": f'"{schema}"',
                "application_name": f"volary-{schema}",
                "timezone": "UTC",
            },
        },
    )


def _single_engine(url: str, schema: str) -> AsyncEngine:
    """Return an engine of statements that commit by themselves, and ask nobody before.

    A connection that its server closed is known to be: no round trip is spent to find it out.
    """
    engine = new_engine(
        url,
        schema,
        pool_size=SINGLE_POOL_SIZE,
        pool_pre_ping=False,
        isolation_level="AUTOCOMMIT",
    )
    event.listen(engine.sync_engine, "checkout", _require_open)
    return engine


def _require_open(connection: Any, _record: object, _proxy: object) -> None:
    """Make the pool connect anew in place of a closed connection."""
    if connection.driver_connection.is_closed():
        raise DisconnectionError("the server closed the connection")


def remaining_s() -> float:
    """Return the seconds that database work may take here: the call's, else the longest."""
    call = find_call()
    left_s = math.inf if call is None else call.remaining_s()
    return min(left_s, LONGEST_STATEMENT_S)


def _limits(*, read_only: bool) -> Any:
    """Return the one statement that bounds a transaction, statement and lock wait."""
    left_s = remaining_s()
    if left_s <= 0:
        raise DeadlineExceeded("DEADLINE_EXCEEDED", "no time was left to ask the database")
    statement_ms = max(1, int(left_s * 1_000))
    lock_ms = max(1, int(min(left_s, LONGEST_LOCK_S) * 1_000))
    return text(
        "SELECT set_config('statement_timeout', :statement, true),"
        " set_config('lock_timeout', :lock, true),"
        " set_config('transaction_read_only', :read_only, true)"
    ).bindparams(
        statement=str(statement_ms), lock=str(lock_ms), read_only="on" if read_only else "off"
    )


class translated:  # noqa: N801 - reads as a clause: `with translated():`
    """Turn a driver's failure into an error of the tree; constraint violations pass."""

    def __init__(self, *, is_commit: bool = False) -> None:
        self._is_commit = is_commit

    def __enter__(self) -> None:
        """Begin."""

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        """Raise the error that a failure stands for, if it stands for one."""
        if error is None or isinstance(error, VolaryError):
            return
        failure = failure_of(error, is_commit=self._is_commit)
        if failure is not None:
            raise failure from error


def failure_of(error: BaseException, *, is_commit: bool = False) -> VolaryError | None:
    """Return what a database failure means to a caller, None if it is not one."""
    if isinstance(error, PoolTimeout):
        return Unavailable(
            "DATABASE_BUSY", "every database connection is in use", retry_after_s=RETRY_AFTER_S
        )
    cause = _driver_error(error)
    if isinstance(cause, asyncpg.QueryCanceledError):
        return DeadlineExceeded("DEADLINE_EXCEEDED", "the database did not answer in time")
    if isinstance(cause, CONFLICTS):
        return Aborted(
            "TRANSACTION_CONFLICT",
            "another change was in the way; try again",
            retry_after_s=RETRY_AFTER_S,
        )
    if isinstance(cause, BROKEN) or isinstance(error, OperationalError | InterfaceError):
        return _broken(is_commit=is_commit)
    return None


CONFLICTS = (
    asyncpg.SerializationError,
    asyncpg.DeadlockDetectedError,
    asyncpg.LockNotAvailableError,
)
# asyncpg raises its own InternalClientError, too, on a connection that broke: whatever it says
# about a client-side failure, the statement may have reached the server
BROKEN = (
    OSError,
    asyncpg.InterfaceError,
    asyncpg.InternalClientError,
    asyncpg.PostgresConnectionError,
    asyncpg.CannotConnectNowError,
    asyncpg.OperatorInterventionError,
    asyncpg.InsufficientResourcesError,
)


def _broken(*, is_commit: bool) -> Unavailable:
    if is_commit:
        return Unavailable(
            "OUTCOME_UNKNOWN",
            "the database went away while committing: the change may have been made;"
            " repeat with the same request id",
            retry_after_s=RETRY_AFTER_S,
        )
    return Unavailable(
        "DATABASE_UNAVAILABLE", "the database cannot be reached", retry_after_s=RETRY_AFTER_S
    )


def _driver_error(error: BaseException) -> BaseException | None:
    """Return asyncpg's own exception below SQLAlchemy's wrappers."""
    if isinstance(error, DBAPIError):
        inner: BaseException | None = error.orig
        while inner is not None and not isinstance(inner, (asyncpg.PostgresError, *BROKEN)):
            inner = inner.__cause__
        return inner or error.orig
    return error
