"""A workflow that holds its id: as long as it runs, no other of that id starts."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from temporalio import workflow
from temporalio.exceptions import FailureError, WorkflowAlreadyStartedError


@dataclass(frozen=True)
class Hold:
    """The input of a workflow that does nothing but hold its id."""

    holder: str


Held = workflow.ChildWorkflowHandle[Any, Any]


@workflow.defn(name="HoldWorkflow")
class HoldWorkflow:
    """Held until it is released, or ended with the workflow that began it."""

    def __init__(self) -> None:
        self._is_released = False

    @workflow.run
    async def run(self, hold: Hold) -> str:
        """Wait; return who held it."""
        await workflow.wait_condition(lambda: self._is_released)
        return hold.holder

    @workflow.signal
    def release(self) -> None:
        """Let go."""
        self._is_released = True


async def held(hold_id: str, holder: str) -> Held | None:
    """Hold an id for as long as the calling workflow runs; None while somebody else does."""
    try:
        return await workflow.start_child_workflow(
            "HoldWorkflow",
            Hold(holder),
            id=hold_id,
            parent_close_policy=workflow.ParentClosePolicy.TERMINATE,
        )
    except WorkflowAlreadyStartedError:
        return None


async def let_go(hold: Held | None) -> None:
    """Free an id; that it is free already, by an operator's hand, harms nothing."""
    if hold is None:
        return
    try:
        await hold.signal("release")
    except FailureError as error:
        workflow.logger.warning("%s was not held any more: %s", hold.id, error)
