"""A shadow's answers are paired with the served ones by request, wherever they lie."""

from __future__ import annotations

import pytest
from monitor_rig import DAY_US, POLICY, START_US, landing, prediction
from volary.monitor.v1 import monitor_service_pb2 as pb

ROUTE = "m/r-v2-abc/shadow/8"
REQUEST = pb.CompareShadowRequest(
    model="projects/default/models/m", candidate_version=2, baseline_version=1, rollout="r-v2-abc"
)


def answered(i: int, version: int, score: float, **more):
    """Return the answer of one version to request i; version 2 is the shadow."""
    event = prediction(
        str(i),
        START_US + i * 1_000_000,
        score=score,
        version=version,
        request_key=f"key-{i:03}",
        shadow=version == 2,
        route=more.pop("route", ROUTE),
        **more,
    )
    event.prediction.latency.nanos = (1_000 if version == 1 else 2_000) * 1_000
    event.id = f"{event.id}-{event.prediction.route}"
    return event


async def paired(rig):
    """Serve 140 requests: the candidate is 0.1 higher, which turns every tenth decision."""
    events = []
    for i in range(140):
        served = 0.45 if i % 10 == 0 else 0.2
        events += [answered(i, 1, served), answered(i, 2, served + 0.1)]
    await rig.predictions(events)


async def test_pairs_are_compared_and_slices_named(rig):
    await paired(rig)
    found = await rig.ask("CompareShadow", REQUEST)
    assert (found.pairs, found.agreeing) == (140, 126)
    assert found.mean_shift == pytest.approx(0.1)
    assert (found.candidate.p50_us, found.baseline.p99_us) == (2_000, 1_000)
    assert list(found.edges) == [0.2, 0.45]  # the 10 % that are higher begin at the ninth tenth
    assert sum(found.bins) == 40  # what came after the hundred that cut the bins
    assert (found.bins[11], found.bins[22]) == (36, 4)
    assert [(s.entity, s.key, s.pairs, s.agreeing) for s in found.slices] == [
        ("carrier", "AA", 140, 126),
        ("plane", "N1", 140, 126),
    ]


async def test_it_is_the_same_whether_the_log_is_written_or_waiting(rig):
    await paired(rig)
    waiting = await rig.ask("CompareShadow", REQUEST)
    await rig.log.step(everything=True)
    assert await rig.ask("CompareShadow", REQUEST) == waiting


async def test_truth_says_whose_decision_alone_was_wrong(rig):
    await rig.apply(POLICY)
    await paired(rig)
    known_us = START_US + DAY_US
    await rig.truths([landing(str(i), 60 if i == 0 else 0, known_us) for i in range(20)])
    found = await rig.ask("CompareShadow", REQUEST)
    # 0 came true, only the baseline said no; 10 did not, only the candidate said yes
    assert (found.labelled, found.only_candidate_wrong, found.only_baseline_wrong) == (20, 1, 1)
    in_turn = [0.55**2 - 0.45**2] + [0.3**2 - 0.2**2] * 18 + [0.45**2 - 0.55**2]
    assert found.brier_difference == pytest.approx(sum(in_turn))
    assert found.brier_difference_squares == pytest.approx(sum(each**2 for each in in_turn))


async def test_failures_count_as_errors_and_never_as_pairs(rig):
    await rig.predictions(
        [
            answered(0, 1, 0.2),
            answered(0, 2, 0.2, code=13),
            answered(1, 1, 0.2),
            answered(1, 2, 0.2, tier="none"),
            answered(2, 1, 0.2),
            answered(2, 2, 0.2),
        ]
    )
    found = await rig.ask("CompareShadow", REQUEST)
    assert (found.pairs, found.candidate.calls, found.candidate.errors) == (1, 3, 2)
    assert (found.baseline.calls, found.baseline.errors) == (3, 0)


async def test_another_rollout_is_another_shadow(rig):
    await rig.predictions(
        [
            answered(0, 1, 0.2, route="m/other/shadow/8"),
            answered(0, 2, 0.2, route="m/other/shadow/8"),
        ]
    )
    found = await rig.ask("CompareShadow", REQUEST)
    assert (found.pairs, found.baseline.calls) == (0, 0)
