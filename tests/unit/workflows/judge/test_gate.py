"""The evaluation gate on paired losses."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest
from volary_workflows.judge.gate import PairedLosses, half_width, judge_gate, recompute_gate
from volary_workflows.judge.inputs import GateRule

RULE = GateRule("brier", margin=0.02, alpha=0.01, method="empirical_bernstein")


def losses(mean, *, rows=20_000, variance=0.01, metric="brier"):
    return PairedLosses(metric, rows, mean, variance, -1.0, 1.0)


def test_half_width_by_hand():
    # sqrt(2 * 0.01 * log 200 / 20000) + 7 * 2 * log 200 / (3 * 19999)
    expected = math.sqrt(0.02 * math.log(200) / 20_000) + 14 * math.log(200) / 59_997
    assert half_width(RULE, losses(0.0)) == pytest.approx(expected)
    normal = GateRule("brier", method="normal", alpha=0.025)
    assert half_width(normal, losses(0.0)) == pytest.approx(1.959964 * 0.1 / math.sqrt(20_000))


@pytest.mark.parametrize(
    ("mean", "rows", "verdict", "code"),
    [
        (-0.01, 20_000, "PASS", "NOT_INFERIOR"),
        (0.005, 20_000, "PASS", "NOT_INFERIOR"),
        (0.019, 20_000, "INCONCLUSIVE", "NOT_SETTLED"),
        (0.05, 20_000, "FAIL", "INFERIOR"),
        (-0.5, 999, "INCONCLUSIVE", "TOO_FEW_ROWS"),
        (-0.01, 1_000, "INCONCLUSIVE", "NOT_SETTLED"),
    ],
)
def test_verdicts(mean, rows, verdict, code):
    decided = judge_gate(RULE, losses(mean, rows=rows))
    assert (decided.verdict, decided.reason_code) == (verdict, code)


def test_a_candidate_worse_by_the_margin_passes_in_at_most_alpha_of_the_draws():
    generator = np.random.default_rng(7)
    draws = generator.choice([-1.0, 0.0, 1.0], p=[0.1, 0.78, 0.12], size=(2_000, 5_000))
    means, variances = draws.mean(axis=1), draws.var(axis=1, ddof=1)
    for method in ("empirical_bernstein", "normal"):
        rule = GateRule("error", margin=0.02, alpha=0.05, method=method)
        passed = sum(
            judge_gate(rule, PairedLosses("error", 5_000, m, v, -1.0, 1.0)).verdict == "PASS"
            for m, v in zip(means, variances, strict=True)
        )
        # 2,000 draws at 5 %: mean 100, standard deviation 9.7; five of them above
        assert passed <= 149


def test_statistics_of_another_metric_are_refused():
    with pytest.raises(ValueError, match="asks for brier"):
        judge_gate(RULE, losses(0.0, metric="log_loss"))
    with pytest.raises(ValueError, match="not finite"):
        judge_gate(RULE, losses(math.nan))


def test_anyone_can_recompute_a_stored_verdict():
    verdict = judge_gate(RULE, losses(0.001))
    assert recompute_gate(json.loads(json.dumps(verdict.to_document()))) == verdict
