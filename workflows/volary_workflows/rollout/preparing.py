"""Before anybody's traffic: the version is loaded everywhere and answers by itself."""

from __future__ import annotations

from temporalio import workflow

with workflow.unsafe.imports_passed_through():
    from volary_workflows.calling import Ended
    from volary_workflows.rollout.messages import State
    from volary_workflows.rollout.running import Running
    from volary_workflows.rollout.tasks import StagingReport

PROBLEMS_SHOWN = 3


class Preparing(Running):
    """The stages LOADING and STAGING."""

    async def _prepare(self) -> None:
        self._enter(State.LOADING)
        self._progress.is_loaded = True
        await self._forward("load_version", self._subject(), int)
        if self._is_of_first_shape():
            return
        self._enter(State.STAGING)
        report = await self._forward("stage_version", self._subject(), StagingReport)
        if report.problems:
            shown = "; ".join(report.problems[:PROBLEMS_SHOWN])
            raise Ended(State.ROLLED_BACK, f"staging refused it: {shown}")
