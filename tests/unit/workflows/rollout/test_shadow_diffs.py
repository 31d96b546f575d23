"""The diff report of a shadow in words, and as the registry keeps it."""

from __future__ import annotations

from google.protobuf.json_format import MessageToDict, ParseDict
from google.protobuf.struct_pb2 import Struct
from volary.monitor.v1 import monitor_pb2
from volary.registry.v1 import model_pb2
from volary_workflows.rollout import shadow_diffs
from volary_workflows.rollout.explaining import explanation_of
from volary_workflows.rollout.shadow_diffs import diff_of, summary_of

COMPARED = monitor_pb2.ShadowComparison(
    pairs=1_000,
    agreeing=970,
    mean_shift=-0.012,
    mean_absolute_shift=0.03,
    candidate=monitor_pb2.ShadowSide(calls=1_001, errors=1, p50_us=900, p99_us=3_000),
    baseline=monitor_pb2.ShadowSide(calls=1_000, p50_us=800, p99_us=2_500),
    labelled=400,
    only_candidate_wrong=9,
    only_baseline_wrong=14,
    slices=[
        monitor_pb2.ShadowSlice(entity="carrier", key="AA", pairs=500, agreeing=490),
        monitor_pb2.ShadowSlice(entity="carrier", key="UA", pairs=100, agreeing=80),
    ],
)


def document(compared=COMPARED):
    return MessageToDict(compared, preserving_proto_field_name=True)


def test_it_is_told_in_words_with_the_slices_that_agree_least():
    assert summary_of(document()) == [
        "97.00% of 1,000 pairs agree on the decision",
        "scores shift by -0.0120 in the mean, by 0.0300 in size",
        (
            "errors 0.10% of 1,001 against 0.00% of 1,000; in the replica "
            "p50 0.9 ms against 0.8 ms, p99 3.0 ms against 2.5 ms"
        ),
        (
            "of 400 pairs with known truth the candidate alone was wrong on 9, the baseline alone "
            "on 14"
        ),
        "carrier UA: 80.00% of 100 agree, 97.00% over all",
    ]


def test_a_shadow_without_a_pair_says_so():
    told = summary_of(document(monitor_pb2.ShadowComparison()))
    assert told[0] == "no request was answered by both versions"


def test_what_was_stored_reads_back_and_explains_itself():
    stored = ParseDict(document(), Struct())
    diff = diff_of(MessageToDict(stored), ["as told"], "r.shadow_diff")
    assert (diff.pairs, diff.agreement, diff.score_shift) == (1_000, 0.97, -0.012)
    evaluation = model_pb2.Evaluation(
        kind=shadow_diffs.KIND,
        verdict=shadow_diffs.REPORTED,
        reasons=summary_of(document()),
        judge_version=shadow_diffs.VERSION,
        statistics=stored,
    )
    assert explanation_of(evaluation).agrees
    evaluation.statistics["agreeing"] = "999"
    assert not explanation_of(evaluation).agrees
