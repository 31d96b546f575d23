"""Break one version on purpose, on every replica, by the control port."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from typing import Any

from volary.inference.v1.control_service_pb2 import (
    ArmFailpointRequest,
    DisarmFailpointRequest,
    Failpoint,
)
from volary.inference.v1.control_service_pb2_grpc import ControlServiceStub
from volary_kit.calls import DEFAULT_PROJECT
from volary_kit.channels import Channels
from volary_kit.clock import SystemClock
from volary_kit.identity import TokenSource
from volary_kit.outgoing import MeshDress
from volary_kit.timestamps import duration_from_us

from volary_cli.demo.declared import FaultSpec
from volary_cli.launcher.folder import MeshFolder
from volary_cli.launcher.identities import LAUNCHER, Identities
from volary_cli.launcher.ports import CONTROL, address

FAILPOINT_ID = "demo"


@asynccontextmanager
async def armed(
    folder: MeshFolder,
    components: Sequence[Mapping[str, Any]],
    model: str,
    version: int,
    fault: FaultSpec,
) -> AsyncIterator[None]:
    """Arm the fault for one version on every replica, and disarm it afterwards."""
    failpoint = Failpoint(
        id=FAILPOINT_ID,
        project=DEFAULT_PROJECT,
        model=model,
        version=version,
        fail_share=fault.fail_share,
        fail_code=fault.fail_code,
        slow_share=fault.slow_share,
        delay=duration_from_us(fault.delay),
    )
    async with _controls(folder, components) as controls:
        for control in controls:
            await control.ArmFailpoint(ArmFailpointRequest(failpoint=failpoint))
        try:
            yield
        finally:
            for control in controls:
                await control.DisarmFailpoint(DisarmFailpointRequest(id=FAILPOINT_ID))


@asynccontextmanager
async def _controls(
    folder: MeshFolder, components: Sequence[Mapping[str, Any]]
) -> AsyncIterator[list[ControlServiceStub]]:
    """Open the control listeners of all inference replicas, as the launcher."""
    addresses: dict[str, str | None] = {
        row["name"]: address(row["ports"][CONTROL])
        for row in components
        if row["name"].startswith("inference")
    }
    tokens = TokenSource(Identities(folder).key(LAUNCHER), SystemClock())
    channels = Channels(LAUNCHER, addresses, MeshDress(tokens))
    try:
        yield [ControlServiceStub(channels.to(name)) for name in addresses]
    finally:
        await channels.close()
