"""What came of predictions: each observation once, by what was routed, and never changed."""

from __future__ import annotations

import pytest
from monitor_rig import START_US, prediction
from volary.monitor.v1 import monitor_pb2
from volary.monitor.v1 import monitor_service_pb2 as pb
from volary_kit.errors import InvalidArgument
from volary_kit.timestamps import from_us

MODEL = "projects/default/models/m"
CALL, PER_STEP, UNIT = (
    monitor_pb2.OUTCOME_UNIT_CALL,
    monitor_pb2.OUTCOME_UNIT_UNIT_PER_STEP,
    monitor_pb2.OUTCOME_UNIT_UNIT,
)


async def served(rig, name: str, version: int, generation: int = 8, rollout: str = "x", **more):
    """Log a prediction that the experiment routed; its id is `{name}.{version}.0`."""
    route = f"m/{rollout}/split/{generation}"
    await rig.predictions([prediction(name, START_US, version=version, route=route, **more)])


async def told(rig, *rows: tuple[str, float, str], metric: str = "value"):
    return await rig.ask(
        "RecordOutcomes",
        pb.RecordOutcomesRequest(
            model=MODEL,
            outcomes=[
                monitor_pb2.Outcome(prediction_id=name, metric=metric, value=value, unit=unit)
                for name, value, unit in rows
            ],
        ),
    )


async def sums(rig, unit=CALL, **more):
    asked = {"rollout": "x", "metric": "value", "lower": 0.0, "upper": 10.0} | more
    return await rig.ask("SumOutcomes", pb.SumOutcomesRequest(model=MODEL, unit=unit, **asked))


def rows(found) -> list[tuple[int, int, int, float, float]]:
    return [(v.version, v.generation, v.count, v.total, v.squares) for v in found.variants]


async def test_the_first_value_of_a_prediction_stands(rig):
    await served(rig, "a", 1)
    first = await told(rig, ("a.1.0", 4.0, ""), ("a.1.0", 4.0, ""), ("a.1.0", 5.0, ""))
    assert (first.recorded, first.duplicates, first.conflicting) == (1, 1, 1)
    again = await told(rig, ("a.1.0", 6.0, ""), ("b.1.0", 1.0, ""))
    assert (again.recorded, again.duplicates, again.conflicting) == (1, 0, 1)
    assert rows(await sums(rig)) == [(1, 8, 1, 0.4, pytest.approx(0.16))]


async def test_only_what_the_experiment_routed_counts(rig):
    await served(rig, "a", 1)
    await served(rig, "b", 2)
    await served(rig, "c", 2, rollout="xy")  # another one, whose id begins alike
    await served(rig, "d", 2, shadow=True)
    names = [f"{name}.{version}.0" for name, version in ("a1", "b2", "c2", "d2")]
    await told(rig, *((name, 5.0, "") for name in names), ("nobody.1.0", 5.0, ""))
    assert rows(await sums(rig)) == [(1, 8, 1, 0.5, 0.25), (2, 8, 1, 0.5, 0.25)]


async def test_a_unit_counts_once_with_its_first_outcome(rig):
    await served(rig, "a", 1)
    await served(rig, "b", 1)
    await served(rig, "c", 2, generation=9)
    await served(rig, "d", 2, generation=9)
    await told(rig, ("a.1.0", 2.0, "ada"))
    await told(rig, ("b.1.0", 10.0, "ada"), ("c.2.0", 10.0, "ada"), ("d.2.0", 3.0, ""))
    whole, each = await sums(rig, UNIT), await sums(rig, PER_STEP)
    assert rows(whole) == [(1, 0, 1, 0.2, pytest.approx(0.04))]
    assert (whole.without_unit, whole.later) == (1, 2)
    assert rows(each) == [(1, 8, 1, 0.2, pytest.approx(0.04)), (2, 9, 1, 1.0, 1.0)]
    assert (await sums(rig, UNIT, metric="other")).variants == []


async def test_values_beyond_the_range_are_cut_off_and_counted(rig):
    await served(rig, "a", 1)
    await served(rig, "b", 1)
    await told(rig, ("a.1.0", -3.0, ""), ("b.1.0", 99.0, ""))
    found = await sums(rig)
    assert (rows(found), found.clipped) == ([(1, 8, 2, 1.0, 1.0)], 2)


async def test_sums_of_an_instant_are_the_same_for_ever(rig):
    await served(rig, "a", 1)
    await served(rig, "b", 1)
    await told(rig, ("a.1.0", 4.0, ""))
    then = from_us(rig.clock.now_us())
    before = await sums(rig, as_of=then)
    rig.clock.advance(1.0)
    await told(rig, ("b.1.0", 4.0, ""), ("a.1.0", 9.0, ""))
    assert await sums(rig, as_of=then) == before
    assert rows(await sums(rig))[0][2] == 2


async def test_truth_is_a_metric_too(rig):
    await served(rig, "a", 1, score=0.9)
    await served(rig, "b", 2, score=0.4)
    await served(rig, "c", 2, score=0.9, tier="rule")
    truths = [pb.Truth(subject=name, label=1.0) for name in ("a", "b", "c")]
    await rig.ask("RecordTruth", pb.RecordTruthRequest(model=MODEL, truths=truths))
    asked = {"source": monitor_pb2.OUTCOME_SOURCE_TRUTH, "upper": 1.0}
    assert rows(await sums(rig, metric="accuracy", **asked)) == [
        (1, 8, 1, 1.0, 1.0),
        (2, 8, 1, 0.0, 0.0),
    ]
    lax = await sums(rig, metric="accuracy", threshold=0.4, **asked)
    assert rows(lax)[1] == (2, 8, 1, 1.0, 1.0)
    assert rows(await sums(rig, metric="brier", **asked))[1][3] == pytest.approx(0.36)


@pytest.mark.parametrize(
    ("asked", "field"),
    [
        ({"lower": 1.0, "upper": 1.0}, "upper"),
        ({"source": monitor_pb2.OUTCOME_SOURCE_TRUTH}, "metric"),
        (
            {
                "source": monitor_pb2.OUTCOME_SOURCE_TRUTH,
                "metric": "brier",
                "unit": UNIT,
            },
            "unit",
        ),
    ],
)
async def test_a_question_without_an_answer_names_its_field(rig, asked, field):
    with pytest.raises(InvalidArgument) as refused:
        await sums(rig, **asked)
    assert field in refused.value.violations


async def test_a_unit_is_kept_as_a_hash(rig):
    await told(rig, ("a.1.0", 4.0, "ada@volary.test"))
    async with rig.database.read() as transaction:
        import sqlalchemy as sa

        stored = (await transaction.execute(sa.text("SELECT unit_hash FROM outcomes"))).scalar_one()
    assert len(stored) == 16
    assert b"ada" not in stored


async def test_as_many_as_one_request_holds_are_summed_in_time(rig):
    """Read once for each other one they would take a minute, and the call has ten seconds."""
    many = range(10_000)
    route = "m/x/split/8"
    await rig.predictions([prediction(f"s{i}", START_US, version=1, route=route) for i in many])
    recorded = await told(rig, *((f"s{i}.1.0", 5.0, f"user-{i % 100}") for i in many))
    assert recorded.recorded == len(many)
    again = await told(rig, *((f"s{i}.1.0", 5.0 + i % 2, "") for i in many))
    assert (again.duplicates, again.conflicting) == (5_000, 5_000)
    assert [row[2] for row in rows(await sums(rig))] == [len(many)]
    assert [row[2] for row in rows(await sums(rig, PER_STEP))] == [100]
