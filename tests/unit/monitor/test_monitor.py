"""The monitor's parts on a real Postgres: log, truth, windows, alerts, replies."""

from __future__ import annotations

import asyncio
from pathlib import Path

import numpy as np
import polars as pl
import pytest
from monitor_rig import DAY_US, POLICY, SET, START_US, Rig, landing, prediction
from redis.asyncio import Redis
from sqlalchemy import text
from volary.events.v1 import event_pb2
from volary.monitor.v1 import monitor_pb2
from volary.monitor.v1 import monitor_service_pb2 as pb
from volary_kit.errors import FailedPrecondition, InvalidArgument, NotFound
from volary_kit.outbox import Relay
from volary_kit.streams import ALERTS, FIELD, Publisher
from volary_kit.testing import called
from volary_kit.timestamps import from_us
from volary_monitor.domain.bins import Reference
from volary_monitor.domain.windows import Span
from volary_monitor.peers import VersionFacts

MODEL = "projects/default/models/m"
FOREVER = Span(0, 1 << 60)
WEEK = Span(START_US, START_US + 7 * DAY_US)


async def scalar(rig: Rig, query: str) -> int:
    async with rig.database.read() as transaction:
        return int(await transaction.scalar(text(query)) or 0)


async def logged(rig: Rig) -> list[str]:
    frame = await rig.log.read("default", "m", WEEK, ["event_id"])
    return sorted(frame["event_id"].to_list())


def files(rig: Rig) -> list[Path]:
    return sorted(rig.folder.rglob("*.parquet"))


# ---- the prediction log


async def test_event_that_comes_again_is_logged_once(rig: Rig):
    events = [prediction(str(i), START_US + i) for i in range(3)]
    await rig.predictions(events)
    await rig.predictions([*events[1:], prediction("3", START_US + 3)])
    await rig.log.step(everything=True)
    await rig.predictions(events)
    assert await logged(rig) == ["e-0-1", "e-1-1", "e-2-1", "e-3-1"]
    assert await scalar(rig, "SELECT count(*) FROM predictions") == 4


async def test_log_is_hive_by_model_and_event_day_and_any_engine_reads_it(rig: Rig):
    await rig.predictions(
        [prediction("a", START_US, features=[1.5, -2.0]), prediction("b", START_US + DAY_US)]
    )
    await rig.log.step(everything=True)
    names = [str(path.parent.relative_to(rig.folder)) for path in files(rig)]
    assert names == [f"project=default/model=m/day=2013-01-0{day}" for day in (1, 2)]
    frame = pl.scan_parquet(rig.folder, hive_partitioning=True).sort("event_time").collect()
    row = frame.row(0, named=True)
    assert (row["day"].isoformat(), row["model"], row["subject"]) == ("2013-01-01", "m", "a")
    assert (row["features"], row["outputs"], row["schema_hash"]) == ([1.5, -2.0], [0.2], "h1")
    assert row["event_time"].isoformat() == "2013-01-01T00:00:00+00:00"


async def test_part_is_written_when_it_is_large_or_old(rig: Rig):
    await rig.predictions([prediction(str(i), START_US + i) for i in range(99)])
    assert await rig.log.step() == 0
    await rig.predictions([prediction("99", START_US)])
    assert await rig.log.step() == 1
    await rig.predictions([prediction("100", START_US)])
    rig.clock.advance(59)
    assert await rig.log.step() == 0
    rig.clock.advance(1)
    assert await rig.log.step() == 1
    assert len(await logged(rig)) == 101


async def test_small_files_of_a_day_are_merged(rig: Rig):
    for i in range(5):
        await rig.predictions([prediction(str(i), START_US + i)])
        await rig.log.step(everything=True)
    assert len(files(rig)) <= 2
    assert len(await logged(rig)) == 5
    assert await scalar(rig, "SELECT sum(rows) FROM log_files") == 5


async def test_waiting_and_written_are_read_together_within_the_window(rig: Rig):
    await rig.predictions([prediction("a", START_US), prediction("b", START_US + 5)])
    await rig.log.step(everything=True)
    await rig.predictions([prediction("c", START_US + 6), prediction("d", START_US + 7)])
    frame = await rig.log.read("default", "m", Span(START_US + 1, START_US + 7), ["subject"])
    assert sorted(frame["subject"].to_list()) == ["b", "c"]


async def test_crash_between_file_and_catalogue_neither_loses_nor_doubles(
    rig: Rig, monkeypatch: pytest.MonkeyPatch
):
    class Crash(BaseException):
        pass

    async def crash(*_arguments) -> None:
        raise Crash

    await rig.predictions([prediction("a", START_US)])
    with monkeypatch.context() as patched:
        patched.setattr(rig.log, "_enter", crash)
        with pytest.raises(Crash):
            await rig.log.step(everything=True)
    assert len(files(rig)) == 1  # written, and named by nobody
    assert await logged(rig) == ["e-a-1"]
    await rig.log.step(everything=True)
    assert await logged(rig) == ["e-a-1"]
    assert await rig.log.sweep() == 1
    assert len(files(rig)) == 1
    assert await logged(rig) == ["e-a-1"]


async def test_two_writers_log_each_event_once(rig: Rig):
    await rig.predictions([prediction(str(i), START_US + i) for i in range(50)])
    await asyncio.gather(*(rig.log.step(everything=True) for _ in range(3)))
    frame = pl.scan_parquet(rig.folder).collect()
    assert len(frame) == 50


# ---- truth


async def test_truth_joins_by_the_declared_columns_late_and_twice(rig: Rig):
    await rig.apply()
    await rig.truths([landing("early", 20, START_US)])  # before its prediction
    await rig.predictions([prediction("early", START_US), prediction("late", START_US)])
    await rig.truths([landing("late", 10, START_US)] * 2 + [landing("x", 1, 1, source="other")])
    reply = await rig.ask("ListPredictions", pb.ListPredictionsRequest(model=MODEL))
    labels = {row.subject: (row.labelled, row.label) for row in reply.predictions}
    assert labels == {"early": (True, 1.0), "late": (True, 0.0)}
    assert await scalar(rig, "SELECT count(*) FROM truths") == 2


async def test_of_two_truths_the_one_known_later_stands_in_either_order(rig: Rig):
    await rig.apply()
    for events in (
        [landing("a", 20, 2), landing("a", 10, 1)],
        [landing("b", 10, 1)],
        [landing("b", 20, 2)],
        [landing("b", 10, 1)],
    ):
        await rig.truths(events)
    assert await scalar(rig, "SELECT count(*) FROM truths WHERE label = 1") == 2


async def test_truth_by_hand_says_what_became_of_it(rig: Rig):
    def request(*labels: tuple[str, float, int]) -> pb.RecordTruthRequest:
        rows = [pb.Truth(subject=s, label=v, known_at=from_us(t)) for s, v, t in labels]
        return pb.RecordTruthRequest(model=MODEL, truths=rows)

    first = await rig.ask("RecordTruth", request(("a", 1, 1), ("b", 0, 1), ("b", 0, 1)))
    assert (first.recorded, first.duplicates, first.corrected) == (2, 1, 0)
    again = await rig.ask("RecordTruth", request(("a", 1, 1), ("b", 1, 2)))
    assert (again.recorded, again.duplicates, again.corrected) == (0, 1, 1)


# ---- quality


async def test_quality_counts_model_answers_of_real_traffic_and_says_how_mature_it_is(rig: Rig):
    await rig.apply()
    await rig.predictions(
        [
            prediction("a", START_US, score=0.9),
            prediction("b", START_US, score=0.2),
            prediction("c", START_US, score=0.2),
            prediction("d", START_US, score=0.2, shadow=True, version=2),
            prediction("e", START_US, score=0.2, tier="rule"),
            prediction("f", START_US, score=0.2, code=13),
        ]
    )
    await rig.truths([landing(name, 20, 1) for name in "abdef"])
    reply = await rig.ask("GetQuality", pb.GetQualityRequest(model=MODEL))
    (found,) = reply.quality
    assert (found.version, found.predictions, found.labelled) == (1, 3, 2)
    assert found.coverage == pytest.approx(2 / 3)
    assert found.accuracy == 0.5
    with_shadow = pb.GetQualityRequest(model=MODEL, include_shadow=True)
    assert [q.version for q in (await rig.ask("GetQuality", with_shadow)).quality] == [1, 2]


async def test_quality_by_window_and_between_bounds(rig: Rig):
    with pytest.raises(FailedPrecondition):
        await rig.ask("GetQuality", pb.GetQualityRequest(model=MODEL, by_window=True))
    await rig.apply()
    for day in range(3):
        await rig.day(day, rows=10)
    reply = await rig.ask("GetQuality", pb.GetQualityRequest(model=MODEL, by_window=True))
    starts = [row.window_start.seconds * 1_000_000 for row in reply.quality]
    assert starts == [START_US + day * DAY_US for day in range(3)]
    bounded = pb.GetQualityRequest(
        model=MODEL, start_time=from_us(START_US + DAY_US), end_time=from_us(START_US + 2 * DAY_US)
    )
    assert [q.predictions for q in (await rig.ask("GetQuality", bounded)).quality] == [10]


# ---- drift and alerts


async def alerts_of(rig: Rig) -> list[monitor_pb2.Alert]:
    reply = await rig.ask("ListAlerts", pb.ListAlertsRequest(parent="projects/default"))
    return list(reply.alerts)


async def judge_days(rig: Rig, *shifts: float, first: int = 0) -> None:
    """Serve a day for each shift and a little of the next, so that all of them close."""
    for number, shift in enumerate(shifts, first):
        await rig.day(number, shift)
        await rig.judge.step()
    await rig.predictions(
        [prediction(f"later-{first}", START_US + (first + len(shifts)) * DAY_US + DAY_US // 12)]
    )
    await rig.judge.step()


async def test_clean_windows_are_judged_once_and_raise_nothing(rig: Rig):
    await rig.apply()
    await judge_days(rig, 0.0, 0.0, 0.0)
    assert await rig.judge.step() == 0
    reply = await rig.ask("ListDrift", pb.ListDriftRequest(model=MODEL))
    assert len(reply.drift) == 6
    assert not [row for row in reply.drift if row.drifted]
    assert await alerts_of(rig) == []


async def test_drift_names_feature_effect_evidence_and_reference(rig: Rig):
    await rig.apply()
    await judge_days(rig, 1.5)
    reply = await rig.ask("ListDrift", pb.ListDriftRequest(model=MODEL, drifted_only=True))
    (found,) = reply.drift
    assert (found.feature, found.values) == ("v.a", 200)
    assert found.mean_shift_sd == pytest.approx(1.5, abs=0.25)
    assert found.adjusted_p_value < 1e-6
    assert found.reference.endswith("/t1")
    assert found.window_start.seconds * 1_000_000 == START_US


async def test_drift_list_pages_newest_window_first(rig: Rig):
    await rig.apply()
    await judge_days(rig, 1.5, 1.5)
    seen, request = [], pb.ListDriftRequest(model=MODEL, page_size=3)
    while True:
        reply = await rig.ask("ListDrift", request)
        seen += [(row.window_start.seconds, row.feature) for row in reply.drift]
        if not reply.next_page_token:
            break
        request.page_token = reply.next_page_token
    assert [feature for _, feature in seen] == ["v.a", "v.b"] * 2
    assert seen[0][0] > seen[2][0]


async def test_alert_rises_after_consecutive_windows_and_resolves_after_as_many(rig: Rig):
    await rig.apply()
    await judge_days(rig, 1.5)
    assert await alerts_of(rig) == []  # one window is not two
    await judge_days(rig, 1.5, first=1)
    (raised,) = await alerts_of(rig)
    assert raised.state == monitor_pb2.ALERT_STATE_FIRING
    assert raised.severity == monitor_pb2.ALERT_SEVERITY_WARNING
    assert (raised.kind, list(raised.targets)) == ("drift", ["v.a"])
    assert (raised.owner, raised.on_call, raised.triggers_retrain) == ("team", "pager", True)
    await judge_days(rig, 0.0, first=2)
    assert (await alerts_of(rig))[0].state == monitor_pb2.ALERT_STATE_FIRING
    await judge_days(rig, 0.0, first=3)
    (resolved,) = await alerts_of(rig)
    assert resolved.state == monitor_pb2.ALERT_STATE_RESOLVED
    assert resolved.HasField("resolve_time")


async def test_alert_that_lasts_asks_for_a_retrain_once_a_cooldown(rig: Rig):
    await rig.apply()
    await judge_days(rig, *[1.5] * 6)
    found = [row for row in await alerts_of(rig) if row.triggers_retrain]
    ends = sorted(row.window_end.seconds for row in found)
    assert len(ends) == 2
    assert ends[1] - ends[0] == 3 * 86_400


async def test_alert_event_leaves_with_the_row(rig: Rig, redis: Redis):
    await rig.apply()
    await judge_days(rig, 1.5, 1.5)
    await Relay(rig.database, Publisher(redis)).step()
    ((_, fields),) = await redis.xrange(ALERTS)
    event = event_pb2.Event.FromString(fields[FIELD])
    assert (event.project, event.alert.state, event.alert.training) == ("default", "firing", "t")
    assert event.alert.triggers_retrain
    assert event.alert.window_end.seconds * 1_000_000 == START_US + 2 * DAY_US
    (row,) = await alerts_of(rig)
    assert event.alert.alert == row.name


async def test_two_judges_judge_each_window_once(rig: Rig):
    await rig.apply()
    for number in range(3):
        await rig.day(number, 1.5)
    await asyncio.gather(*(rig.judge.step() for _ in range(3)))
    assert await scalar(rig, "SELECT count(*) FROM windows WHERE kind = 'drift'") == 2
    assert len(await alerts_of(rig)) == 1


async def test_wall_clock_predictions_without_subject_or_schema_close_no_window(rig: Rig):
    await rig.apply()
    await rig.day(0)
    now_us = rig.clock.now_us()
    await rig.predictions([prediction("", now_us, schema_hash="")])
    assert await rig.judge.step() == 0


async def test_window_with_few_predictions_is_not_judged_and_told_as_volume(rig: Rig):
    await rig.apply()
    await rig.day(0, 1.5, rows=20)
    await rig.day(1, 1.5, rows=20)
    await judge_days(rig, 0.0, first=2)
    kinds = {row.kind for row in await alerts_of(rig)}
    assert kinds == {"volume"}


async def windows_of(rig: Rig, kind: str) -> list[tuple[int, bool | None]]:
    query = text("SELECT start_us, is_bad FROM windows WHERE kind = :kind ORDER BY start_us")
    async with rig.database.read() as transaction:
        rows = await transaction.execute(query, {"kind": kind})
        return [((row.start_us - START_US) // DAY_US, row.is_bad) for row in rows]


async def test_days_without_a_prediction_are_told_as_volume(rig: Rig):
    await rig.apply()
    await rig.day(0)
    await rig.day(4)
    await rig.judge.step()
    assert await windows_of(rig, "volume") == [(0, False), (1, True), (2, True), (3, True)]
    assert await windows_of(rig, "drift") == [(0, False), (1, None), (2, None), (3, None)]
    (raised,) = await alerts_of(rig)
    assert (raised.kind, raised.value, raised.threshold) == ("volume", 0.0, 50.0)
    assert await rig.judge.step() == 0


async def test_a_model_that_fell_silent_closes_its_windows_by_its_truth(rig: Rig):
    await rig.apply()
    await rig.day(0)
    await rig.tell(2)
    await rig.judge.step()
    assert await windows_of(rig, "volume") == []  # a late prediction may still come
    await rig.tell(5)
    await rig.judge.step()
    assert await windows_of(rig, "volume") == [(0, False), (1, True), (2, True)]
    assert {row.kind for row in await alerts_of(rig)} >= {"volume"}


async def test_one_prediction_of_the_far_future_empties_nothing_that_truth_has_not_reached(
    rig: Rig,
):
    await rig.apply()
    await rig.day(0)
    await rig.tell(1)
    await rig.predictions([prediction("far", START_US + 9_000 * DAY_US)])
    await rig.judge.step()
    assert await windows_of(rig, "volume") == [(0, False)]


async def test_score_is_held_against_what_it_was_at_registration(rig: Rig):
    edges = np.linspace(0.1, 0.9, 9)
    scores = np.random.default_rng(5).uniform(size=10_000)
    counts = np.bincount(np.searchsorted(edges, scores), minlength=10)
    told = Reference(
        "score", edges, counts, scores.mean(), scores.std(), scores.min(), scores.max()
    )
    rig.peers.facts = {1: VersionFacts(0.5, {}, SET, told), 2: VersionFacts(0.5, {}, "", told)}
    await rig.apply()
    await rig.day(0)  # every score is 0.2
    await rig.day(1, version=2)
    await rig.day(2)
    await rig.judge.step()
    reply = await rig.ask("ListDrift", pb.ListDriftRequest(model=MODEL, drifted_only=True))
    found = [(row.feature, row.reference.partition("/models/")[2]) for row in reply.drift]
    # version 2 names no training set: its score alone is judged
    assert found == [("score", "m/versions/2"), ("score", "m/versions/1")]
    assert reply.drift[0].values == 200
    assert reply.drift[0].psi > 0.5
    (raised,) = await alerts_of(rig)
    assert (raised.kind, raised.triggers_retrain) == ("score_drift", False)
    assert raised.severity == monitor_pb2.ALERT_SEVERITY_INFORMATIONAL


async def test_quality_is_judged_when_truth_is_given_up_and_against_registration(rig: Rig):
    await rig.apply()
    await rig.day(0)
    await rig.land(0, rows=150, delay=60)  # all late, all predicted at 0.2
    await rig.tell(1)
    assert await rig.judge.step() == 0  # the day has ended, the truth of it is not all in
    await rig.tell(2)
    await rig.judge.step()
    (raised,) = await alerts_of(rig)
    assert (raised.kind, list(raised.targets)) == ("quality", ["versions/1"])
    assert raised.severity == monitor_pb2.ALERT_SEVERITY_CRITICAL
    assert (raised.value, raised.threshold) == (pytest.approx(1.609, abs=1e-3), pytest.approx(0.6))


async def test_truth_that_never_comes_is_told_as_label_delay_not_as_quality(rig: Rig):
    await rig.apply()
    await rig.day(0)
    await rig.land(0, rows=20, delay=60)
    await rig.tell(3)
    await rig.judge.step()
    (raised,) = await alerts_of(rig)
    assert (raised.kind, raised.value, raised.threshold) == ("label_delay", 0.1, 0.5)


async def test_watch_sends_what_fires_and_then_changes(rig: Rig):
    await rig.apply()
    await judge_days(rig, 1.5, 1.5)
    request = pb.WatchAlertsRequest(parent="projects/default")
    with called():
        stream = rig.handler.WatchAlerts(request, None)
        first = await asyncio.wait_for(anext(stream), 5)
        assert first.state == monitor_pb2.ALERT_STATE_FIRING
        await rig.ask("AcknowledgeAlert", pb.AcknowledgeAlertRequest(name=first.name))
        second = await asyncio.wait_for(anext(stream), 5)
        assert second.acknowledged_by == "principals/tester"
        await stream.aclose()


# ---- policies


async def test_same_document_changes_nothing_and_another_is_a_new_version(rig: Rig):
    first = await rig.apply()
    again = await rig.apply()
    second = await rig.apply(POLICY.replace("pager", "other-pager"))
    assert (first.version, again.version, second.version) == (1, 1, 2)
    assert first.document_hash == again.document_hash != second.document_hash
    read = await rig.ask("GetMonitorPolicy", pb.GetMonitorPolicyRequest(name=first.name))
    assert read == second
    assert (read.model, read.owner, read.on_call) == ("m", "team", "other-pager")


async def test_model_is_watched_by_one_policy(rig: Rig):
    await rig.apply()
    with pytest.raises(FailedPrecondition) as caught:
        await rig.apply(POLICY.replace("name: m", "name: n"))
    assert caught.value.reason == "MODEL_IS_WATCHED"


async def test_validation_alone_writes_nothing(rig: Rig):
    request = pb.ApplyMonitorPolicyRequest(validate_only=True)
    request.monitor_policy.name = "projects/default/monitorPolicies/m"
    request.monitor_policy.document.update({"kind": "Monitor", "name": "m"})
    with pytest.raises(InvalidArgument) as caught:
        await rig.ask("ApplyMonitorPolicy", request)
    assert {"owner", "on_call", "spec"} <= caught.value.violations.keys()
    assert await scalar(rig, "SELECT count(*) FROM policies") == 0


async def test_another_project_sees_nothing(rig: Rig):
    policy = await rig.apply()
    await judge_days(rig, 1.5, 1.5)
    (alert,) = await alerts_of(rig)
    for method, request in (
        ("GetMonitorPolicy", pb.GetMonitorPolicyRequest(name=policy.name)),
        ("AcknowledgeAlert", pb.AcknowledgeAlertRequest(name=alert.name)),
        ("GetQuality", pb.GetQualityRequest(model=MODEL)),
        ("ListPredictions", pb.ListPredictionsRequest(model=MODEL)),
    ):
        with pytest.raises(NotFound):
            await rig.ask(method, request, project="other")


async def test_forged_page_token_is_refused(rig: Rig):
    import base64
    import json

    for key in ("x", "1:", ":1", "9" * 30 + ":1"):
        token = base64.urlsafe_b64encode(json.dumps(key).encode()).decode()
        with pytest.raises(InvalidArgument):
            request = pb.ListAlertsRequest(parent="projects/default", page_token=token)
            await rig.ask("ListAlerts", request)
        with pytest.raises(InvalidArgument):
            await rig.ask("ListDrift", pb.ListDriftRequest(model=MODEL, page_token=token))
