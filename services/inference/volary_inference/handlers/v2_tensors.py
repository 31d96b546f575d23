"""V2 messages to tensors and back."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from inference import grpc_service_pb2 as pb
from volary_kit.errors import InvalidArgument

from volary_inference.domain.datatypes import DATATYPES
from volary_inference.domain.predictions import Provenance
from volary_inference.domain.tensors import (
    Tensor,
    datatype_of,
    from_raw,
    from_values,
    to_raw,
    to_values,
)


def tensors_of(request: pb.ModelInferRequest) -> tuple[Tensor, ...]:
    """Decode every input, raw or typed; raise InvalidArgument when both or neither are there."""
    raw = request.raw_input_contents
    if raw and len(raw) != len(request.inputs):
        raise InvalidArgument(
            "RAW_COUNT_MISMATCH",
            f"{len(request.inputs)} inputs came with {len(raw)} raw contents",
            field="raw_input_contents",
        )
    return tuple(
        _raw_tensor(row, raw[index], index) if raw else _typed_tensor(row, index)
        for index, row in enumerate(request.inputs)
    )


def _raw_tensor(row: pb.ModelInferRequest.InferInputTensor, raw: bytes, index: int) -> Tensor:
    field = f"inputs[{index}]"
    if row.HasField("contents"):
        raise InvalidArgument(
            "CONTENTS_TWICE", "an input has typed and raw contents", field=f"{field}.contents"
        )
    _refuse_parameters(row.parameters, field)
    return from_raw(row.name, row.datatype, row.shape, raw, field)


def _typed_tensor(row: pb.ModelInferRequest.InferInputTensor, index: int) -> Tensor:
    field = f"inputs[{index}]"
    _refuse_parameters(row.parameters, field)
    expected = datatype_of(row.datatype, field).contents
    if not expected:
        raise InvalidArgument(
            "RAW_ONLY", f"{row.datatype} travels in raw_input_contents", field=f"{field}.contents"
        )
    filled = [descriptor.name for descriptor, _ in row.contents.ListFields()]
    if filled not in ([], [expected]):
        raise InvalidArgument(
            "CONTENTS_MISMATCH",
            f"{row.datatype} travels in {expected}, {', '.join(filled)} came",
            field=f"{field}.contents",
        )
    values = getattr(row.contents, expected)
    return from_values(row.name, row.datatype, row.shape, list(values), field)


def _refuse_parameters(names: Iterable[str], field: str) -> None:
    for name in names:
        raise unknown_parameter(name, field)


def unknown_parameter(name: str, field: str = "") -> InvalidArgument:
    """Return the error of a parameter that nothing here understands."""
    where = f"{field}.parameters" if field else "parameters"
    return InvalidArgument(
        "PARAMETER_UNKNOWN", f"parameter {name[:64]!r} is not known here", field=where
    )


def fill_outputs(
    response: pb.ModelInferResponse, outputs: Sequence[Tensor], *, is_raw: bool
) -> None:
    """Write the outputs: raw when the request was, or when one has no typed form."""
    is_raw = is_raw or any(not DATATYPES[tensor.datatype].contents for tensor in outputs)
    for tensor in outputs:
        row = response.outputs.add(
            name=tensor.name, datatype=tensor.datatype, shape=list(tensor.shape)
        )
        if is_raw:
            response.raw_output_contents.append(to_raw(tensor))
        else:
            getattr(row.contents, DATATYPES[tensor.datatype].contents).extend(to_values(tensor))


def fill_provenance(response: pb.ModelInferResponse, provenance: Provenance) -> None:
    """Write where the reply came from into its parameters."""
    parameters = response.parameters
    parameters["volary_version"].int64_param = provenance.key.version
    parameters["volary_digest"].string_param = provenance.digest
    parameters["volary_tier"].string_param = provenance.tier
    parameters["volary_route"].string_param = provenance.route
    parameters["volary_prediction_id"].string_param = provenance.prediction_id
    parameters["volary_queue_us"].int64_param = provenance.queue_us
    parameters["volary_batch_size"].int64_param = provenance.batch_size
    if provenance.confidence is not None:
        parameters["volary_confidence"].double_param = provenance.confidence
    if provenance.precision:
        parameters["volary_precision"].string_param = provenance.precision
    if provenance.is_calibrated:
        parameters["volary_calibrated"].bool_param = True
    if provenance.is_cached:
        parameters["volary_cached"].bool_param = True
    if provenance.decision is not None:
        parameters["volary_reason_codes"].string_param = ",".join(provenance.decision.reason_codes)
        parameters["volary_action"].string_param = provenance.decision.action
