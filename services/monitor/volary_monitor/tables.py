"""The tables that the stores query; migrations make them."""

from __future__ import annotations

import sqlalchemy as sa

metadata = sa.MetaData()


def _table(name: str, **kinds: type[sa.types.TypeEngine] | sa.types.TypeEngine) -> sa.Table:
    return sa.Table(name, metadata, *(sa.Column(key, kind) for key, kind in kinds.items()))


policies = _table(
    "policies",
    project=sa.Text,
    policy=sa.Text,
    version=sa.BigInteger,
    is_newest=sa.Boolean,
    document=sa.Text,
    document_hash=sa.Text,
    model=sa.Text,
    owner=sa.Text,
    on_call=sa.Text,
    create_us=sa.BigInteger,
)
predictions = _table(
    "predictions",
    position=sa.BigInteger,
    event_id=sa.Text,
    project=sa.Text,
    model=sa.Text,
    prediction_id=sa.Text,
    version=sa.BigInteger,
    tier=sa.Text,
    shadow=sa.Boolean,
    subject=sa.Text,
    event_us=sa.BigInteger,
    schema_hash=sa.Text,
    score=sa.Double,
    code=sa.Integer,
    trace_id=sa.Text,
    route=sa.Text,
)
log_pending = _table(
    "log_pending",
    position=sa.BigInteger,
    project=sa.Text,
    model=sa.Text,
    day=sa.Text,
    event_us=sa.BigInteger,
    since_us=sa.BigInteger,
    event=sa.LargeBinary,
)
log_files = _table(
    "log_files", path=sa.Text, project=sa.Text, model=sa.Text, day=sa.Text, rows=sa.BigInteger
)
truths = _table(
    "truths",
    project=sa.Text,
    model=sa.Text,
    subject=sa.Text,
    label=sa.Double,
    known_us=sa.BigInteger,
)
outcomes = _table(
    "outcomes",
    project=sa.Text,
    model=sa.Text,
    metric=sa.Text,
    prediction_id=sa.Text,
    position=sa.BigInteger,
    unit_hash=sa.LargeBinary,
    value=sa.Double,
    known_us=sa.BigInteger,
    recorded_us=sa.BigInteger,
)
actions = _table(
    "actions",
    position=sa.BigInteger,
    project=sa.Text,
    prediction_id=sa.Text,
    request_key=sa.Text,
    model=sa.Text,
    version=sa.BigInteger,
    action=sa.Text,
    reason_codes=sa.ARRAY(sa.Text),
    score=sa.Double,
    subject=sa.Text,
    event_us=sa.BigInteger,
    webhook=sa.Text,
    workflow=sa.Text,
    task_queue=sa.Text,
    state=sa.Text,
    attempts=sa.Integer,
    due_us=sa.BigInteger,
    problem=sa.Text,
    create_us=sa.BigInteger,
    settle_us=sa.BigInteger,
)
watermarks = _table("watermarks", project=sa.Text, source=sa.Text, watermark_us=sa.BigInteger)
windows = _table(
    "windows",
    project=sa.Text,
    model=sa.Text,
    kind=sa.Text,
    start_us=sa.BigInteger,
    end_us=sa.BigInteger,
    is_bad=sa.Boolean,
)
drift = _table(
    "drift",
    project=sa.Text,
    model=sa.Text,
    start_us=sa.BigInteger,
    rank=sa.Integer,
    end_us=sa.BigInteger,
    feature=sa.Text,
    values=sa.BigInteger,
    psi=sa.Double,
    ks=sa.Double,
    p_value=sa.Double,
    adjusted_p_value=sa.Double,
    mean_shift_sd=sa.Double,
    out_of_range=sa.BigInteger,
    has_drifted=sa.Boolean,
    reference=sa.Text,
)
alerts = _table(
    "alerts",
    project=sa.Text,
    alert=sa.Text,
    change=sa.BigInteger,
    model=sa.Text,
    kind=sa.Text,
    severity=sa.Text,
    state=sa.Text,
    targets=sa.ARRAY(sa.Text),
    value=sa.Double,
    threshold=sa.Double,
    summary=sa.Text,
    window_start_us=sa.BigInteger,
    window_end_us=sa.BigInteger,
    triggers_retrain=sa.Boolean,
    training=sa.Text,
    owner=sa.Text,
    on_call=sa.Text,
    raise_us=sa.BigInteger,
    resolve_us=sa.BigInteger,
    acknowledged_by=sa.Text,
)
alert_changes = sa.Sequence("alert_changes")
