"""Long-running operations on a real Postgres and a real Temporal."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

import pytest
from google.protobuf.duration_pb2 import Duration
from google.rpc import code_pb2
from temporalio.client import Client
from volary.ingest.v1 import ingest_service_pb2 as ingest_pb2
from volary_kit.database import Database
from volary_kit.errors import FailedPrecondition, InvalidArgument, NotFound, Unavailable
from volary_kit.operations import OperationContext, Operations
from volary_kit.operations.handlers import OperationsHandler
from volary_kit.testing import ManualClock, called, eventually
from volary_longrunning import operations_pb2

METHOD = "StartPull"
Work = Callable[[OperationContext, ingest_pb2.StartPullRequest], Awaitable[object]]


class Desk:
    """A service in small that owns operations."""

    def __init__(self, database: Database, client: Client) -> None:
        self.database = database
        self.clock = ManualClock()
        self.client = client
        self.operations = Operations("kit", database, self._connect, self.clock)
        self.handler = OperationsHandler(self.operations)

    async def _connect(self) -> Client:
        return self.client

    async def start(self, request_id: str, work: Work | None = None, project: str = "default"):
        if work is not None:
            self.operations.register(METHOD, work)
        request = ingest_pb2.StartPullRequest(source="s", request_id=request_id)
        with called(project=project):
            async with self.database.transaction() as transaction:
                return await self.operations.start(
                    transaction,
                    method=METHOD,
                    request=request,
                    metadata=ingest_pb2.PullMetadata(),
                )

    async def wait(self, name: str, timeout_s: int = 20) -> operations_pb2.Operation:
        request = operations_pb2.WaitOperationRequest(
            name=name, timeout=Duration(seconds=timeout_s)
        )
        with called(timeout_s=30):
            return await self.handler.WaitOperation(request, None)

    async def ask(self, method: str, request, project: str = "default"):
        with called(project=project, timeout_s=10):
            return await getattr(self.handler, method)(request, None)


@pytest.fixture
async def desk(database: Database, temporal: Client) -> Desk:
    """A desk on a task queue of its own: its database is fresh, so ids are told apart by it."""
    desk = Desk(database, temporal)
    desk.operations.service = f"kit{database.url.rpartition('_')[2]}"
    return desk


@asynccontextmanager
async def working(desk: Desk) -> AsyncIterator[None]:
    running = asyncio.create_task(desk.operations.run())
    try:
        yield
    finally:
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)


async def pull(context: OperationContext, request: ingest_pb2.StartPullRequest):
    return ingest_pb2.StartPullRequest(source=f"pulled {request.source}")


async def test_operation_runs_and_its_row_holds_the_reply(desk: Desk):
    async with working(desk):
        started = await desk.start("r1", pull)
        assert not started.done
        done = await desk.wait(started.name)
    reply = ingest_pb2.StartPullRequest()
    assert done.response.Unpack(reply)
    assert (done.done, reply.source) == (True, "pulled s")
    read = await desk.ask("GetOperation", operations_pb2.GetOperationRequest(name=started.name))
    assert read == done


async def test_same_request_id_is_the_same_operation_and_runs_once(desk: Desk):
    runs: list[str] = []

    async def counted(context: OperationContext, request: ingest_pb2.StartPullRequest):
        runs.append(context.id)
        return await pull(context, request)

    async with working(desk):
        first, again = await desk.start("r1", counted), await desk.start("r1")
        await desk.wait(first.name)
        late = await desk.start("r1")
    assert first.name == again.name == late.name
    assert late.done
    assert len(runs) == 1


async def test_operation_of_a_transaction_that_rolls_back_never_was(desk: Desk):
    with called():
        with pytest.raises(RuntimeError):
            async with desk.database.transaction() as transaction:
                operation = await desk.operations.start(
                    transaction, method=METHOD, request=ingest_pb2.StartPullRequest(source="s")
                )
                raise RuntimeError
        with pytest.raises(NotFound):
            request = operations_pb2.GetOperationRequest(name=operation.name)
            await desk.handler.GetOperation(request, None)


async def test_operation_committed_before_a_crash_is_started_afterwards(desk: Desk):
    started = await desk.start("r1", pull)  # no worker, no starter: the process is gone
    async with working(desk):
        assert (await desk.wait(started.name)).done


async def test_failure_keeps_its_reason_and_a_defect_shows_nothing(desk: Desk):
    async def refuse(context: OperationContext, request: object):
        raise FailedPrecondition("NOT_NOW", "come back later", {"when": "later"})

    async def break_down(context: OperationContext, request: object):
        raise ValueError("secret")

    async with working(desk):
        refused = await desk.wait((await desk.start("r1", refuse)).name)
        broken = await desk.wait((await desk.start("r2", break_down)).name)
    assert refused.error.code == code_pb2.FAILED_PRECONDITION
    assert refused.error.details
    assert broken.error.code == code_pb2.INTERNAL
    assert "secret" not in str(broken)


async def test_transient_failure_is_tried_again_with_the_same_request_ids(desk: Desk):
    seen: list[tuple[int, str]] = []

    async def shaky(context: OperationContext, request: ingest_pb2.StartPullRequest):
        seen.append((context.attempt, context.request_id("write")))
        if len(seen) < 2:
            raise Unavailable("AWAY", "for now", retry_after_s=0.05)
        return await pull(context, request)

    async with working(desk):
        done = await desk.wait((await desk.start("r1", shaky)).name)
    assert done.HasField("response")
    assert [attempt for attempt, _ in seen] == [1, 2]
    assert len({request_id for _, request_id in seen}) == 1


async def test_progress_is_seen_while_it_runs(desk: Desk):
    shown, leave = asyncio.Event(), asyncio.Event()

    async def slow(context: OperationContext, request: ingest_pb2.StartPullRequest):
        await context.progress(ingest_pb2.PullMetadata(stage="b7"))
        shown.set()
        await leave.wait()
        return await pull(context, request)

    async with working(desk):
        started = await desk.start("r1", slow)
        await shown.wait()
        seen = await desk.wait(started.name, timeout_s=0)
        leave.set()
        await desk.wait(started.name)
    metadata = ingest_pb2.PullMetadata()
    assert seen.metadata.Unpack(metadata)
    assert (seen.done, metadata.stage) == (False, "b7")


async def test_cancel_ends_the_handler_and_the_operation(desk: Desk):
    entered = asyncio.Event()
    ended: list[str] = []

    async def endless(context: OperationContext, request: object):
        entered.set()
        try:
            await asyncio.Event().wait()
        finally:
            ended.append("cleaned up")

    async with working(desk):
        started = await desk.start("r1", endless)
        await entered.wait()
        await desk.ask("CancelOperation", operations_pb2.CancelOperationRequest(name=started.name))
        done = await desk.wait(started.name)
    assert done.error.code == code_pb2.CANCELLED
    assert ended == ["cleaned up"]


async def test_cancel_before_anybody_worked_on_it(desk: Desk):
    started = await desk.start("r1", pull)
    await desk.ask("CancelOperation", operations_pb2.CancelOperationRequest(name=started.name))
    async with working(desk):
        assert (await desk.wait(started.name)).error.code == code_pb2.CANCELLED


async def test_operation_whose_workflow_was_terminated_ends(desk: Desk):
    async def endless(context: OperationContext, request: object):
        await asyncio.Event().wait()

    async def is_running() -> bool:
        row = await desk.operations.rows.find(operation_id)
        return row is not None and row.state == "RUNNING"

    async with working(desk):
        started = await desk.start("r1", endless)
        operation_id = started.name.rpartition(".")[2]
        await eventually(is_running, within_s=30)
        await desk.client.get_workflow_handle(operation_id).terminate()
    desk.clock.advance(61)
    async with working(desk):
        done = await desk.wait(started.name)
    assert done.error.code == code_pb2.UNAVAILABLE


async def test_worker_that_goes_away_hands_over_to_the_next(desk: Desk):
    entered = asyncio.Event()
    attempts: list[int] = []

    async def slow_once(context: OperationContext, request: ingest_pb2.StartPullRequest):
        attempts.append(context.attempt)
        entered.set()
        if len(attempts) == 1:
            await asyncio.Event().wait()
        return await pull(context, request)

    async with working(desk):
        started = await desk.start("r1", slow_once)
        await entered.wait()
    async with working(desk):
        done = await desk.wait(started.name)
    assert done.HasField("response")
    assert attempts == [1, 2]


async def test_list_pages_newest_first_and_filters(desk: Desk):
    names = []
    for number in range(3):
        names.append((await desk.start(f"r{number}", pull)).name)
        desk.clock.advance(1)
    await desk.start("r9", project="other")
    request = operations_pb2.ListOperationsRequest(name="projects/default", page_size=2)
    first = await desk.ask("ListOperations", request)
    assert [row.name for row in first.operations] == names[:0:-1]
    request.page_token = first.next_page_token
    second = await desk.ask("ListOperations", request)
    assert [row.name for row in second.operations] == names[:1]
    assert second.next_page_token == ""
    done = operations_pb2.ListOperationsRequest(name="projects/default", filter="done = true")
    assert not (await desk.ask("ListOperations", done)).operations
    for wrong in ({"filter": "name=x"}, {"page_size": -1}, {"page_token": "x"}):
        with pytest.raises(InvalidArgument):
            request = operations_pb2.ListOperationsRequest(name="projects/default", **wrong)
            await desk.ask("ListOperations", request)


async def test_delete_only_what_has_ended(desk: Desk):
    started = await desk.start("r1", pull)
    request = operations_pb2.DeleteOperationRequest(name=started.name)
    with pytest.raises(FailedPrecondition):
        await desk.ask("DeleteOperation", request)
    async with working(desk):
        await desk.wait(started.name)
    await desk.ask("DeleteOperation", request)
    with pytest.raises(NotFound):
        await desk.ask("GetOperation", operations_pb2.GetOperationRequest(name=started.name))


async def test_name_of_another_project_or_service_is_not_found(desk: Desk):
    started = await desk.start("r1", pull)
    request = operations_pb2.GetOperationRequest(name=started.name)
    with pytest.raises(NotFound):
        await desk.ask("GetOperation", request, project="other")
    foreign = operations_pb2.GetOperationRequest(name=started.name.replace("/kit", "/other"))
    with pytest.raises(NotFound):
        await desk.ask("GetOperation", foreign)


async def test_start_without_temporal_is_unavailable_and_reads_still_answer(desk: Desk):
    started = await desk.start("r1", pull)

    async def away() -> Client:
        raise Unavailable("TEMPORAL_UNAVAILABLE", "gone")

    desk.operations._temporal = away
    with pytest.raises(Unavailable):
        await desk.start("r2")
    read = await desk.ask("GetOperation", operations_pb2.GetOperationRequest(name=started.name))
    assert read.name == started.name
