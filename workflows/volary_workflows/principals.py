"""On whose behalf a workflow works: the principal that began it travels with every activity."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from temporalio.api.common.v1 import Payload
from temporalio.converter import PayloadConverter
from temporalio.worker import (
    ExecuteWorkflowInput,
    StartActivityInput,
    StartLocalActivityInput,
    WorkflowInboundInterceptor,
    WorkflowOutboundInterceptor,
)

HEADER = "volary-on-behalf-of"


class PrincipalInbound(WorkflowInboundInterceptor):
    """Reads who began the workflow from its input; the outbound half sends it along."""

    _principal = ""

    def init(self, outbound: WorkflowOutboundInterceptor) -> None:
        """Wrap the outbound half."""
        super().init(_PrincipalOutbound(outbound, self))

    async def execute_workflow(self, input: ExecuteWorkflowInput) -> Any:  # noqa: A002
        """Remember the principal for the activities of this run."""
        self._principal = principal_of(input.args[0]) if input.args else ""
        return await super().execute_workflow(input)

    @property
    def principal(self) -> str:
        """The principal, empty when nobody is named."""
        return self._principal


class _PrincipalOutbound(WorkflowOutboundInterceptor):
    def __init__(self, next: WorkflowOutboundInterceptor, inbound: PrincipalInbound) -> None:  # noqa: A002
        super().__init__(next)
        self._inbound = inbound

    def start_activity(self, input: StartActivityInput) -> Any:  # noqa: A002
        input.headers = self._named(input.headers)
        return super().start_activity(input)

    def start_local_activity(self, input: StartLocalActivityInput) -> Any:  # noqa: A002
        input.headers = self._named(input.headers)
        return super().start_local_activity(input)

    def _named(self, headers: Mapping[str, Payload]) -> Mapping[str, Payload]:
        if not self._inbound.principal:
            return headers
        return {**headers, HEADER: PayloadConverter.default.to_payload(self._inbound.principal)}


def principal_of(message: object) -> str:
    """Return who asked for a workflow, by its input or its input's specification."""
    for owner in (message, getattr(message, "spec", None)):
        principal = getattr(owner, "requested_by", None)
        if isinstance(principal, str):
            return principal
    return ""


def principal_in(headers: Mapping[str, Payload]) -> str | None:
    """Return the principal that an activity's headers name, None for nobody."""
    payload = headers.get(HEADER)
    return PayloadConverter.default.from_payload(payload, str) if payload is not None else None
