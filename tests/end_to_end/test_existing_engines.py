"""A mesh on engines that exist already: none is started, and a project can be declared on them."""

from __future__ import annotations

import json

import asyncpg
import pytest

from tests.end_to_end.conftest import PASSWORD, WholeMesh


@pytest.mark.timeout(400)
async def test_a_mesh_uses_engines_that_exist(
    whole_mesh: WholeMesh, elsewhere: dict[str, str]
) -> None:
    status = await whole_mesh.told("status")
    names = {row["name"] for row in status["components"]}
    assert not names & {"postgres", "redis", "temporal"}
    assert {row["health"] for row in status["components"]} == {"ready"}
    assert status["temporal"] == elsewhere["VOLARY_TEMPORAL_ADDRESS"]
    assert PASSWORD not in json.dumps(status)
    applied = await whole_mesh.volary("apply", "examples/flights")
    assert applied.returncode == 0, applied.stderr[-4_000:]
    connection = await asyncpg.connect(elsewhere["VOLARY_POSTGRES_URL"])
    models = await connection.fetchval(
        "SELECT count(*) FROM registry.models WHERE model = 'flights-delay'"
    )
    await connection.close()
    assert models == 1


@pytest.mark.timeout(400)
async def test_a_training_is_retrained_by_a_calendar_until_that_is_taken_away(
    whole_mesh: WholeMesh,
) -> None:
    monthly = ("retrain", "schedule", "some-training", "--every", "30d")
    for _ in range(2):  # the second one replaces the first
        assert (await whole_mesh.volary(*monthly)).returncode == 0
    refused = await whole_mesh.volary("retrain", "schedule", "some-training", "--cron", "never")
    assert (refused.returncode, "CALENDAR_INVALID" in refused.stderr) == (5, True)
    gone = [
        (await whole_mesh.volary("retrain", "unschedule", "some-training")).returncode
        for _ in range(2)
    ]
    assert gone == [0, 5]
