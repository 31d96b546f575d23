"""A workflow that holds its id: as long as it runs, no other of that id starts."""

from __future__ import annotations

from temporalio import workflow

with workflow.unsafe.imports_passed_through():
    from volary_workflows.experiment.tasks import Hold


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
