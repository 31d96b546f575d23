"""Rows and requests to messages and back."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from google.protobuf.json_format import MessageToDict
from google.protobuf.struct_pb2 import Struct
from google.protobuf.timestamp_pb2 import Timestamp
from volary.features.v1 import features_service_pb2 as pb
from volary.features.v1.feature_pb2 import Feature, FeatureSet, FeatureView
from volary_kit.errors import InvalidArgument
from volary_kit.timestamps import from_us, to_us

from volary_features.definitions import ResolvedSet
from volary_features.domain import view as declared
from volary_features.domain.quanta import Numbers, numbers
from volary_features.domain.vectors import VectorPlan
from volary_features.offline.training import Bounds, Spine
from volary_features.online.folding import scalar
from volary_features.online.reading import Answer, Question

DAY_0_US, LAST_DAY_US = 0, 253_402_300_799_000_000


def document_of(struct: Struct) -> dict[str, Any]:
    """Return a document as plain data; a Struct has doubles for all numbers."""
    return MessageToDict(struct)


def view_of(project: str, row: Any, view: declared.FeatureView) -> FeatureView:
    """Return a view; without a row it is one that was only checked."""
    found = FeatureView(
        name=f"projects/{project}/featureViews/{view.name}",
        owner=view.owner,
        on_call=view.on_call,
    )
    if row is not None:
        found.document.update(row.document)
        found.version, found.document_hash = row.version, row.document_hash
        found.create_time.CopyFrom(from_us(row.create_us))
        if row.watermark_us is not None:
            found.watermark.CopyFrom(from_us(row.watermark_us))
    return found


def set_of(project: str, row: Any, plan: VectorPlan) -> FeatureSet:
    """Return a set; without a row it is one that was only checked."""
    declared_set = plan.feature_set
    found = FeatureSet(
        name=f"projects/{project}/featureSets/{declared_set.name}",
        schema_hash=plan.schema_hash,
        features=[
            Feature(
                name=each.name,
                default_value=each.default,
                description=each.description,
                unit=each.unit,
            )
            for each in declared_set.spec.features
        ],
        entities=plan.entities,
        request_fields=plan.request_fields,
        owner=declared_set.owner,
        on_call=declared_set.on_call,
    )
    if row is not None:
        found.document.update(row.document)
        found.version = row.version
        found.create_time.CopyFrom(from_us(row.create_us))
    return found


def spine_of(message: pb.Spine, source: str) -> Spine:
    """Return a spine over a source of the caller's project."""
    return Spine(
        source=source,
        subject_column=message.subject_column,
        time_column=message.time_column,
        label_column=message.label_column,
        label_threshold=message.label_threshold,
        entity_columns=dict(message.entity_columns),
        request_columns=dict(message.request_columns),
    )


def bounds_of(request: pb.BuildTrainingSetRequest) -> Bounds:
    """Return the bounds of a training set; what is not stated bounds nothing."""

    def bound(name: str, default: int) -> int:
        given = request.HasField(name)  # pyright: ignore[reportArgumentType]
        return to_us(getattr(request, name), name) if given else default

    found = Bounds(
        start_us=bound("start_time", DAY_0_US),
        end_us=bound("end_time", LAST_DAY_US),
        known_until_us=bound("known_until", LAST_DAY_US),
    )
    if found.start_us >= found.end_us:
        raise InvalidArgument(
            "BOUNDS_EMPTY", "start_time must be before end_time", field="end_time"
        )
    return found


def question_of(
    request: pb.GetOnlineFeaturesRequest, resolved: ResolvedSet, now_us: int
) -> Question:
    """Return what is asked; raise InvalidArgument when keys or fields are missing or unequal."""
    plan = resolved.plan
    for name in plan.entities:
        if name not in request.entities:
            raise _missing("ENTITY_MISSING", name, f"entities[{name}]")
    for name in plan.request_fields:
        if name not in request.request_fields:
            raise _missing("REQUEST_FIELD_MISSING", name, f"request_fields[{name}]")
    keys = {name: list(request.entities[name].keys) for name in plan.entities}
    fields = {name: request.request_fields[name].values for name in plan.request_fields}
    rows = _rows(keys, fields, len(request.event_times))
    return Question(
        keys=keys,
        fields={name: _field(name, values) for name, values in fields.items()},
        asked_us=_asked(request.event_times, rows, now_us),
    )


def _rows(keys: dict[str, list[str]], fields: dict[str, Any], times: int) -> int:
    sizes = {f"entities[{name}]": len(values) for name, values in keys.items()}
    sizes |= {f"request_fields[{name}]": len(values) for name, values in fields.items()}
    rows = next(iter(sizes.values()), max(times, 1))
    if times > 1:
        sizes["event_times"] = times
    for place, size in sizes.items():
        if size != rows:
            raise InvalidArgument(
                "ROWS_UNEQUAL", f"{place} has {size} entries, others {rows}", field=place
            )
    return rows


def _field(name: str, values: Sequence[Any]) -> Numbers:
    found = [scalar(value) for value in values]
    for place, value in enumerate(found):
        if isinstance(value, str) or (value is not None and not np.isfinite(value)):
            raise InvalidArgument(
                "REQUEST_FIELD_IS_NO_NUMBER",
                f"{name} must be a finite number",
                field=f"request_fields[{name}].values[{place}]",
            )
    return numbers(found)


def _asked(times: Sequence[Timestamp], rows: int, now_us: int) -> Any:
    if not times:
        return np.full(rows, now_us, dtype=np.int64)
    asked = [to_us(each, f"event_times[{place}]") for place, each in enumerate(times)]
    return np.full(rows, asked[0], dtype=np.int64) if len(asked) == 1 else np.array(asked, np.int64)


def _missing(reason: str, name: str, field: str) -> InvalidArgument:
    return InvalidArgument(reason, f"the set needs {name}", {"missing": name}, field=field)


def answer_of(resolved: ResolvedSet, answer: Answer) -> pb.GetOnlineFeaturesResponse:
    """Return vectors row by row."""
    found = pb.GetOnlineFeaturesResponse(
        values=answer.vectors.ravel().tolist(),
        states=answer.states.tobytes(),
        rows=len(answer.vectors),
        feature_names=resolved.plan.names,
        feature_set=resolved.label,
        schema_hash=resolved.plan.schema_hash,
    )
    if answer.watermark_us is not None:
        found.watermark.CopyFrom(from_us(answer.watermark_us))
    return found
