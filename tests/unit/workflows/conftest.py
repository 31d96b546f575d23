"""Days of a rollout in milliseconds of a test.

A server for each module: what one leaves behind must not hold up the time of the next.
"""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest
from temporalio.testing import WorkflowEnvironment

from tests.unit.workflows.days import time_skipping_environment


@pytest.fixture(scope="module")
async def time_skipping() -> AsyncIterator[WorkflowEnvironment]:
    async with await time_skipping_environment() as environment:
        yield environment
