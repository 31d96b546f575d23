"""What the findings and measurements of a window mean to the alert of each kind."""

from __future__ import annotations

from volary_monitor.alerts import Judgement
from volary_monitor.domain import quality
from volary_monitor.domain.discovery import Finding
from volary_monitor.domain.policy import MonitorSpec
from volary_monitor.domain.windows import Span

DRIFT, SCORE_DRIFT, QUALITY = "drift", "score_drift", "quality"
LABEL_DELAY, VOLUME = "label_delay", "volume"
SHOWN = 5


def drift_judgement(findings: list[Finding], spec: MonitorSpec, span: Span) -> Judgement:
    """Return what the findings of a window mean; without findings it is not judged."""
    rule = spec.drift
    drifted = [found for found in findings if found.has_drifted]
    names = ", ".join(found.distance.feature for found in drifted[:SHOWN])
    return Judgement(
        kind=DRIFT,
        span=span,
        is_bad=None if not findings else len(drifted) >= rule.min_features,
        targets=[found.distance.feature for found in drifted],
        value=float(len(drifted)),
        threshold=float(rule.min_features),
        summary=f"{len(drifted)} of {len(findings)} features drifted from training: {names}",
    )


def score_judgement(
    found: Finding | None, version: int, spec: MonitorSpec, span: Span
) -> Judgement:
    """Return whether the score moved away from its registration; None says nothing."""
    distance = None if found is None else found.distance
    shift = 0.0 if distance is None else distance.mean_shift_sd
    psi = 0.0 if distance is None else distance.psi
    return Judgement(
        kind=SCORE_DRIFT,
        span=span,
        is_bad=None if found is None else found.has_drifted,
        targets=[f"versions/{version}"],
        value=psi,
        threshold=spec.drift.min_psi,
        summary=f"the score of version {version} moved by {shift:.2f} standard deviations",
    )


def quality_judgement(
    measured: dict[int, quality.Quality],
    passed: list[tuple[int, quality.Breach]],
    spec: MonitorSpec,
    span: Span,
) -> Judgement:
    """Return what the measured versions mean; without enough truth the window is not judged."""
    rule = spec.quality
    is_mature = any(
        found.coverage >= rule.min_coverage and found.labelled >= rule.min_labelled
        for found in measured.values()
    )
    words = [
        f"{breach.metric} of version {version} is {breach.value:.4f}, its bound {breach.bound:.4f}"
        for version, breach in passed
    ]
    return Judgement(
        kind=QUALITY,
        span=span,
        is_bad=bool(passed) if is_mature else None,
        targets=[f"versions/{version}" for version in sorted({each for each, _ in passed})],
        value=passed[0][1].value if passed else 0.0,
        threshold=passed[0][1].bound if passed else 0.0,
        summary="; ".join(words),
    )


def label_delay_judgement(
    measured: dict[int, quality.Quality], spec: MonitorSpec, span: Span
) -> Judgement:
    """Return whether too little truth came before it was given up."""
    bound = spec.quality.min_coverage
    total = sum(found.predictions for found in measured.values())
    labelled = sum(found.labelled for found in measured.values())
    coverage = labelled / total if total else 0.0
    return Judgement(
        kind=LABEL_DELAY,
        span=span,
        is_bad=None if not total else coverage < bound,
        targets=[],
        value=coverage,
        threshold=bound,
        summary=f"the truth of {labelled} of {total} predictions is known",
    )


def volume_judgement(count: int, spec: MonitorSpec, span: Span) -> Judgement:
    """Return whether a window had too few predictions to judge."""
    bound = spec.window.min_predictions
    return Judgement(
        kind=VOLUME,
        span=span,
        is_bad=count < bound,
        targets=[],
        value=float(count),
        threshold=float(bound),
        summary=f"{count} predictions, {bound} are needed to judge a window",
    )
