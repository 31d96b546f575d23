"""Put the monitor together."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from volary.monitor.v1.monitor_service_pb2_grpc import add_MonitorServiceServicer_to_server
from volary_kit import streams
from volary_kit.service import Resources, Service, Servicer, run
from volary_kit.streams import ConsumerGroup
from volary_kit.webhooks import Webhooks

from volary_monitor.action_delivery import ActionDelivery, Delivering
from volary_monitor.domain.actions import Allowed
from volary_monitor.handlers.monitor import MonitorHandler
from volary_monitor.intake import PredictionIntake, TruthIntake
from volary_monitor.judging import Judge
from volary_monitor.peers import Peers
from volary_monitor.prediction_log import Limits, PredictionLog
from volary_monitor.settings import MonitorSettings
from volary_monitor.shadow_reader import ShadowReader

GROUP = "monitor"
BATCH = 1_000
LINGER_S = 0.2  # a transaction costs the same for one event as for sixty: 300 a second make five


@asynccontextmanager
async def build(kit: Resources[MonitorSettings]) -> AsyncIterator[Service]:
    """Yield the service; it needs a database, and Redis for what comes in."""
    database, redis, settings = kit.require_database(), kit.require_redis(), kit.settings
    limits = Limits(settings.log_rows, settings.log_age_s, settings.log_files)
    written = PredictionLog(settings.data_dir / "predictions", database, kit.clock, limits)
    judge = Judge(database, Peers(kit.channels), written, kit.clock)
    webhooks = Webhooks(settings.webhook_origins, settings.webhook_secret.get_secret_value())
    how = Delivering(settings.action_attempts, round(settings.action_lease_s * 1_000_000))
    delivery = ActionDelivery(
        database, kit.clock, webhooks, kit.temporal, settings.action_workflows, how
    )

    def wake() -> None:
        judge.wake()
        delivery.wake()

    consumer = f"{GROUP}-{settings.instance}"
    intakes = [
        ConsumerGroup(
            redis,
            streams.PREDICTIONS,
            GROUP,
            consumer,
            PredictionIntake(database, kit.clock, wake),
            batch=BATCH,
            linger_s=LINGER_S,
        ),
        ConsumerGroup(
            redis,
            streams.SOURCE_EVENTS,
            GROUP,
            consumer,
            TruthIntake(database, judge.wake),
            batch=BATCH,
            linger_s=LINGER_S,
        ),
    ]
    yield Service(
        servicers=[
            Servicer(
                add_MonitorServiceServicer_to_server,
                MonitorHandler(
                    database,
                    judge,
                    ShadowReader(database, written),
                    kit.clock,
                    Allowed(webhooks.allows, frozenset(settings.action_workflows)),
                ),
                "volary.monitor.v1.MonitorService",
            )
        ],
        readiness=[database.ping],
        background=[*(intake.run for intake in intakes), written.run, judge.run, delivery.run],
    )


def main() -> None:
    """Run the monitor until it is told to stop."""
    run("monitor", MonitorSettings, build)
