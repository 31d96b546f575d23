"""Gateway's reading of tensors is inference's: what one keeps the other finds."""

from __future__ import annotations

import pytest
from inference import grpc_service_pb2 as v2
from volary_gateway.handlers.tensors import fill_outputs, inputs_of
from volary_inference.domain.tensors import to_raw
from volary_inference.handlers.v2_tensors import fill_outputs as inference_fills
from volary_inference.handlers.v2_tensors import tensors_of
from volary_kit.datatypes import TYPED

VALUES = {
    "BOOL": [True, False, True],
    "BYTES": [b"", b"one", b"\x00two"],
    "UINT8": [0, 7, 255],
    "UINT64": [0, 1, (1 << 64) - 1],
    "INT8": [-128, 0, 127],
    "INT64": [-(1 << 63), 0, (1 << 63) - 1],
    "FP32": [0.1, -0.0, float("inf")],
    "FP64": [0.1, -0.0, 1e300],
}


def typed(datatype: str, values: list) -> v2.ModelInferRequest:
    request = v2.ModelInferRequest(model_name="m")
    row = request.inputs.add(name="x", datatype=datatype, shape=[1, len(values)])
    getattr(row.contents, TYPED[datatype].contents).extend(values)
    return request


@pytest.mark.parametrize("datatype", sorted(TYPED))
def test_typed_contents_are_the_bytes_that_inference_makes_of_them(datatype: str):
    values = VALUES.get(datatype, [0, 1, 2])
    request = typed(datatype, values)
    [tensor] = tensors_of(request)
    assert inputs_of(request) == [("x", datatype, [1, 3], to_raw(tensor))]
    kept = v2.ModelInferResponse()
    inference_fills(kept, [tensor], is_raw=True)
    reply = v2.ModelInferResponse()
    fill_outputs(reply, kept, is_raw=False)
    assert reply.outputs[0].contents == request.inputs[0].contents
    again = v2.ModelInferResponse()
    fill_outputs(again, kept, is_raw=True)
    assert again == kept


@pytest.mark.parametrize(("datatype", "values"), [("INT8", [300]), ("UINT16", [1 << 20])])
def test_value_that_does_not_fit_was_never_answered(datatype: str, values: list):
    assert inputs_of(typed(datatype, values)) is None


def test_count_that_contradicts_itself_was_never_answered():
    request = typed("FP32", [1.0])
    request.raw_input_contents.extend([b"", b""])
    assert inputs_of(request) is None
    odd = v2.ModelInferRequest(inputs=[{"name": "x", "datatype": "FP16", "shape": [1]}])
    assert inputs_of(odd) is None
