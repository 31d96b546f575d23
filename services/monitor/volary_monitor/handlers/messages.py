"""Rows and findings as messages of `volary.monitor.v1`."""

from __future__ import annotations

import json
from dataclasses import asdict
from typing import Any

import sqlalchemy as sa
from google.protobuf.json_format import ParseDict
from google.protobuf.struct_pb2 import Struct
from volary.monitor.v1.monitor_pb2 import (
    ALERT_SEVERITY_CRITICAL,
    ALERT_SEVERITY_INFORMATIONAL,
    ALERT_SEVERITY_WARNING,
    ALERT_STATE_FIRING,
    ALERT_STATE_RESOLVED,
    Alert,
    Drift,
    LoggedPrediction,
    MonitorPolicy,
    Quality,
    ShadowComparison,
    ShadowSide,
    ShadowSlice,
)
from volary_kit.timestamps import from_us

from volary_monitor.domain import quality
from volary_monitor.domain.shadows import ShadowDiff
from volary_monitor.domain.windows import Span
from volary_monitor.store.alerts import FIRING, RESOLVED

Row = sa.Row[Any]
SEVERITIES = {
    "critical": ALERT_SEVERITY_CRITICAL,
    "warning": ALERT_SEVERITY_WARNING,
    "informational": ALERT_SEVERITY_INFORMATIONAL,
}
STATES = {FIRING: ALERT_STATE_FIRING, RESOLVED: ALERT_STATE_RESOLVED}
STATE_NAMES = {number: name for name, number in STATES.items()}


def policy_of(row: Row) -> MonitorPolicy:
    """Return a stored policy."""
    return MonitorPolicy(
        name=f"projects/{row.project}/monitorPolicies/{row.policy}",
        document=ParseDict(json.loads(row.document), Struct()),
        version=row.version,
        document_hash=row.document_hash,
        model=row.model,
        owner=row.owner,
        on_call=row.on_call,
        create_time=from_us(row.create_us),
    )


def quality_of(model: str, version: int, span: Span | None, found: quality.Quality) -> Quality:
    """Return the quality of one version in one window, or over everything asked for."""
    reply = Quality(model=model, version=version, coverage=found.coverage, **vars(found))
    if span is not None:
        reply.window_start.CopyFrom(from_us(span.start_us))
        reply.window_end.CopyFrom(from_us(span.end_us))
    return reply


def drift_of(row: Row) -> Drift:
    """Return one finding."""
    return Drift(
        model=row.model,
        feature=row.feature,
        window_start=from_us(row.start_us),
        window_end=from_us(row.end_us),
        values=row._mapping["values"],  # noqa: SLF001 - a row's own method is called values
        psi=row.psi,
        ks=row.ks,
        p_value=row.p_value,
        adjusted_p_value=row.adjusted_p_value,
        mean_shift_sd=row.mean_shift_sd,
        drifted=row.has_drifted,
        reference=row.reference,
        out_of_range=row.out_of_range,
    )


def alert_of(row: Row) -> Alert:
    """Return one alert."""
    reply = Alert(
        name=f"projects/{row.project}/alerts/{row.alert}",
        model=row.model,
        kind=row.kind,
        severity=SEVERITIES[row.severity],
        state=STATES[row.state],
        targets=row.targets,
        value=row.value,
        threshold=row.threshold,
        summary=row.summary,
        window_start=from_us(row.window_start_us),
        window_end=from_us(row.window_end_us),
        triggers_retrain=row.triggers_retrain,
        owner=row.owner,
        on_call=row.on_call,
        raise_time=from_us(row.raise_us),
        acknowledged_by=row.acknowledged_by,
    )
    if row.resolve_us is not None:
        reply.resolve_time.CopyFrom(from_us(row.resolve_us))
    return reply


def prediction_of(row: Row) -> LoggedPrediction:
    """Return one prediction with its truth where it is known."""
    reply = LoggedPrediction(
        prediction_id=row.prediction_id,
        model=row.model,
        version=row.version,
        tier=row.tier,
        shadow=row.shadow,
        subject=row.subject,
        event_time=from_us(row.event_us),
        score=row.score or 0.0,
        labelled=row.label is not None,
        label=row.label or 0.0,
        trace_id=row.trace_id,
        route=row.route,
    )
    if row.label_known_us is not None:
        reply.label_known_at.CopyFrom(from_us(row.label_known_us))
    return reply


def comparison_of(found: ShadowDiff) -> ShadowComparison:
    """Return the message of a shadow's comparison."""
    labelled = found.labelled
    return ShadowComparison(
        pairs=found.pairs,
        agreeing=found.agreeing,
        mean_shift=found.mean_shift,
        mean_absolute_shift=found.mean_absolute_shift,
        largest_shift=found.largest_shift,
        candidate=ShadowSide(**asdict(found.candidate)),
        baseline=ShadowSide(**asdict(found.baseline)),
        edges=found.edges,
        bins=[count for row in found.bins for count in row],
        labelled=labelled.pairs,
        only_candidate_wrong=labelled.only_candidate_wrong,
        only_baseline_wrong=labelled.only_baseline_wrong,
        brier_difference=labelled.total,
        brier_difference_squares=labelled.squares,
        slices=[ShadowSlice(**asdict(each)) for each in found.slices],
    )
