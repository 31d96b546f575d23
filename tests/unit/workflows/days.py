"""Temporal's time-skipping server, started with patience: a busy machine starts a Java slowly."""

from __future__ import annotations

from temporalio.testing import WorkflowEnvironment
from volary_cli.launcher.engines import ensure_test_server
from volary_cli.launcher.settings import LauncherSettings
from volary_workflows.worker import register_attributes

ATTEMPTS = 5  # of the SDK's 5 s each


async def time_skipping_environment() -> WorkflowEnvironment:
    """Return a running environment; the caller shuts it down."""
    settings = LauncherSettings.read()
    server = ensure_test_server(settings.cache / "temporal-test-server", maven=settings.maven_url)
    for attempt in range(ATTEMPTS):
        try:
            environment = await WorkflowEnvironment.start_time_skipping(
                test_server_existing_path=str(server)
            )
        except RuntimeError:
            if attempt == ATTEMPTS - 1:
                raise
        else:
            await register_attributes(environment.client)
            return environment
    raise AssertionError
