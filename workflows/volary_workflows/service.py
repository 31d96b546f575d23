"""What the deployable runs: the worker and the listener of alerts."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from volary_kit.resources import Resources
from volary_kit.service import Service
from volary_kit.streams import ALERTS, ConsumerGroup
from volary_kit.webhooks import Webhooks

from volary_workflows.deployments import made_current, version_of
from volary_workflows.failpoints import Failpoints
from volary_workflows.settings import WorkflowsSettings
from volary_workflows.trigger import GROUP, RetrainTrigger
from volary_workflows.worker import activities_of, make_worker, register_attributes


@asynccontextmanager
async def build(kit: Resources[WorkflowsSettings]) -> AsyncIterator[Service]:
    """Compose the worker; it has no RPC of its own, Temporal says whether it polls."""
    settings = kit.settings
    webhooks = Webhooks(settings.webhook_origins, settings.webhook_secret.get_secret_value())
    activities = activities_of(kit.channels, webhooks, kit.clock)
    deployed_as = version_of(settings.deployment, settings.build_id)
    held = [Failpoints(settings.data_dir / "failpoints")] if settings.failpoints else []

    async def work() -> None:
        client = await kit.temporal()
        await register_attributes(client)
        worker = make_worker(
            client,
            activities,
            max_activities=settings.max_activities,
            interceptors=held,
            deployed_as=deployed_as,
        )
        await worker.run()

    async def take_over() -> None:
        if deployed_as is not None and settings.takes_over:
            await made_current(await kit.temporal(), deployed_as)
        await asyncio.Event().wait()

    alerts = ConsumerGroup(
        kit.require_redis(), ALERTS, GROUP, settings.instance, RetrainTrigger(kit.temporal)
    )
    yield Service(background=[work, take_over, alerts.run])
