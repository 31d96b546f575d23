"""Temporal's time-skipping server: days of a rollout in milliseconds of a test."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest
from temporalio.testing import WorkflowEnvironment
from volary_cli.launcher.engines import ensure_test_server
from volary_cli.launcher.settings import LauncherSettings


@pytest.fixture(scope="session")
async def time_skipping() -> AsyncIterator[WorkflowEnvironment]:
    settings = LauncherSettings.read()
    server = ensure_test_server(settings.cache / "temporal-test-server", maven=settings.maven_url)
    environment = await WorkflowEnvironment.start_time_skipping(
        test_server_existing_path=str(server)
    )
    async with environment:
        yield environment
