"""REST bodies to messages and back: pure, without a server."""

from __future__ import annotations

import json
import math
import struct

import numpy as np
import pytest
from inference import grpc_service_pb2 as pb
from volary_inference.domain.datatypes import DATATYPES
from volary_inference.rest import documents, refusals, replies, requests, values
from volary_inference.rest.requests import Wanted
from volary_inference.rest.upstream import metadata_of
from volary_kit import errors, statuses
from volary_kit.errors import InvalidArgument, VolaryError

TEXT, BYTES = Wanted({}, otherwise=False), Wanted({}, otherwise=True)
JSON_TYPES = [name for name, kind in DATATYPES.items() if kind.contents and not kind.is_bytes]


def extremes(datatype: str) -> np.ndarray:
    kind = DATATYPES[datatype]
    if datatype == "BOOL":
        return np.array([True, False])
    if kind.is_integer:
        info = np.iinfo(kind.dtype)
        return np.array([info.min, info.max, 0, 1], kind.dtype)
    info = np.finfo(kind.dtype)
    found = [info.min, info.max, info.tiny, info.smallest_subnormal, -0.0, 0.1, 1 / 3]
    return np.array(found, kind.dtype)


def infer_body(**inputs: object) -> bytes:
    return json.dumps({"inputs": [inputs]}).encode()


def refused(body: bytes, json_bytes: int | None = None) -> InvalidArgument:
    with pytest.raises(InvalidArgument) as caught:
        requests.asked("m", "", body, len(body) if json_bytes is None else json_bytes)
    return caught.value


@pytest.mark.parametrize("datatype", JSON_TYPES)
def test_json_carries_every_value_bit_for_bit(datatype: str) -> None:
    array = extremes(datatype)
    raw = array.tobytes()
    text = documents.written(values.data_of(raw, datatype, array.shape, "x"))
    assert values.raw_of(json.loads(text), datatype, array.shape, "x") == raw


def test_nested_data_is_read_in_row_major_order() -> None:
    nested = [[[1, 2], [3, 4]], [[5, 6], [7, 8]]]
    expected = np.arange(1, 9, dtype=np.int16).tobytes()
    assert values.raw_of(nested, "INT16", (2, 2, 2), "x") == expected
    assert values.raw_of(list(range(1, 9)), "INT16", (2, 2, 2), "x") == expected


@pytest.mark.parametrize(
    ("datatype", "shape", "data", "reason"),
    [
        ("FP32", [2], [1.0], "CONTENTS_SIZE_MISMATCH"),
        ("FP32", [2, 1], [[1.0, 2.0]], "DATA_SHAPE_MISMATCH"),
        ("FP32", [2, 2], [[1.0, 2.0], [3.0]], "DATA_RAGGED"),
        ("FP32", [2, 2], [[1.0, 2.0], 3.0], "DATA_RAGGED"),
        ("FP32", [1], [1e39], "VALUE_OUT_OF_RANGE"),
        ("FP64", [1], [10**400], "VALUE_OUT_OF_RANGE"),
        ("FP32", [1], ["1"], "DATA_TYPE_MISMATCH"),
        ("FP32", [1], [True], "DATA_TYPE_MISMATCH"),
        ("INT32", [1], [1.5], "DATA_TYPE_MISMATCH"),
        ("INT32", [1], [True], "DATA_TYPE_MISMATCH"),
        ("INT8", [1], [128], "VALUE_OUT_OF_RANGE"),
        ("UINT64", [1], [-1], "VALUE_OUT_OF_RANGE"),
        ("UINT64", [1], [1 << 64], "VALUE_OUT_OF_RANGE"),
        ("BOOL", [1], [1], "DATA_TYPE_MISMATCH"),
        ("BYTES", [1], [7], "DATA_TYPE_MISMATCH"),
        ("BYTES", [1], ["\ud800"], "DATA_TYPE_MISMATCH"),
        ("FP16", [1], [1.0], "BINARY_ONLY"),
        ("BF16", [1], [1.0], "BINARY_ONLY"),
        ("FP99", [1], [1.0], "DATATYPE_UNKNOWN"),
        ("FP32", [-1], [1.0], "SHAPE_INVALID"),
        ("FP32", [1 << 40], [1.0], "SHAPE_INVALID"),
        ("FP32", [1 << 70], [1.0], "SHAPE_INVALID"),
        ("FP32", [1] * 1_000, [1.0], "SHAPE_INVALID"),
        ("FP32", [1.0], [1.0], "SHAPE_INVALID"),
        ("FP32", [1], 1.0, "JSON_TYPE_MISMATCH"),
    ],
)
def test_data_that_contradicts_itself_is_refused(
    datatype: str, shape: list[int], data: object, reason: str
) -> None:
    body = infer_body(name="x", datatype=datatype, shape=shape, data=data)
    assert refused(body).reason == reason


@pytest.mark.parametrize(
    "body",
    [b"{", b"[]", b"nul", b"\xff\xfe", b"{}x", b"[" * 100_000, b'{"id": NaN}', b'{"a": 1e9999'],
)
def test_what_is_not_an_object_of_json_is_refused(body: bytes) -> None:
    assert refused(body).reason in ("JSON_INVALID", "JSON_TYPE_MISMATCH")


def test_a_binary_tail_is_cut_by_the_stated_sizes() -> None:
    head = {
        "id": "7",
        "inputs": [
            {"name": "a", "datatype": "FP16", "shape": [2], "parameters": {"binary_data_size": 4}},
            {"name": "b", "datatype": "INT8", "shape": [1], "data": [5]},
            {"name": "c", "datatype": "BYTES", "shape": [1], "parameters": {"binary_data_size": 6}},
        ],
        "outputs": [{"name": "y", "parameters": {"binary_data": True}}, {"name": "z"}],
        "parameters": {"timeout": 2_000_000, "volary_subject": "u", "weight": 0.5, "big": 1 << 63},
    }
    text = json.dumps(head).encode()
    tail = b"\x00\x3c\x00\xbc" + struct.pack("<I", 2) + b"\xff\x00"
    asked = requests.asked("m", "3", text + tail, len(text))
    message = asked.message
    assert list(message.raw_input_contents) == [tail[:4], b"\x05", tail[4:]]
    assert (message.model_name, message.model_version, message.id) == ("m", "3", "7")
    assert not message.inputs[0].parameters
    assert asked.wanted.is_binary("y")
    assert not asked.wanted.is_binary("z")
    assert asked.timeout_s == pytest.approx(2.05)
    assert message.parameters["volary_subject"].string_param == "u"
    assert message.parameters["weight"].double_param == 0.5
    assert message.parameters["big"].uint64_param == 1 << 63
    for broken in (tail[:-1], tail + b"x"):
        assert refused(text + broken, len(text)).reason == "BINARY_SIZE_MISMATCH"


def test_an_input_has_one_source() -> None:
    assert refused(infer_body(name="x", datatype="FP32", shape=[1])).reason == "DATA_MISSING"
    both = infer_body(
        name="x", datatype="FP32", shape=[1], data=[1], parameters={"binary_data_size": 0}
    )
    assert refused(both).reason == "DATA_TWICE"
    nulls = b'{"inputs":[{"name":"x"}],"parameters":{"a":null}}'
    assert refused(nulls).reason == "DATA_MISSING"
    assert refused(b'{"parameters":{"a":null}}').reason == "PARAMETER_INVALID"


def reply_of(datatype: str, shape: list[int], raw: bytes) -> pb.ModelInferResponse:
    reply = pb.ModelInferResponse(model_name="m", model_version="1", id="7")
    reply.parameters["volary_tier"].string_param = "model"
    reply.outputs.add(name="y", datatype=datatype, shape=shape)
    reply.raw_output_contents.append(raw)
    return reply


def test_a_reply_is_json_with_its_bytes_behind_it() -> None:
    raw = np.array([1.5, 2.5], np.float32).tobytes()
    plain = replies.body_of(reply_of("FP32", [2], raw), TEXT)
    assert plain.json_bytes is None
    found = json.loads(plain.data)
    assert found["outputs"] == [{"name": "y", "datatype": "FP32", "shape": [2], "data": [1.5, 2.5]}]
    assert (found["id"], found["parameters"]) == ("7", {"volary_tier": "model"})
    mixed = replies.body_of(reply_of("FP32", [2], raw), BYTES)
    assert mixed.json_bytes is not None
    row = json.loads(mixed.data[: mixed.json_bytes])["outputs"][0]
    assert (row["parameters"], "data" in row) == ({"binary_data_size": 8}, False)
    assert mixed.data[mixed.json_bytes :] == raw


def test_typed_contents_become_the_same_reply() -> None:
    reply = pb.ModelInferResponse(model_name="m")
    tensor = reply.outputs.add(name="y", datatype="FP32", shape=[1])
    tensor.contents.fp32_contents.append(0.25)
    assert json.loads(replies.body_of(reply, TEXT).data)["outputs"][0]["data"] == [0.25]


@pytest.mark.parametrize(
    ("datatype", "raw"),
    [
        ("FP16", b"\x00\x3c"),
        ("FP32", struct.pack("<f", math.inf)),
        ("BYTES", struct.pack("<I", 1) + b"\xff"),
    ],
)
def test_what_json_cannot_say_is_refused_and_goes_as_bytes(datatype: str, raw: bytes) -> None:
    with pytest.raises(VolaryError) as caught:
        replies.body_of(reply_of(datatype, [1], raw), TEXT)
    assert caught.value.reason == "BINARY_ONLY"
    assert replies.body_of(reply_of(datatype, [1], raw), BYTES).data.endswith(raw)


def test_numbers_of_messages_are_numbers_and_unset_ones_are_there_when_asked() -> None:
    found = documents.plain(
        pb.ModelStatistics(name="m", last_inference=1 << 60, inference_count=2), is_whole=True
    )
    assert found["last_inference"] == 1 << 60
    assert found["inference_stats"]["cache_hit"] == {"count": 0, "ns": 0}
    config = pb.ModelConfig(input=[pb.ModelInput(name="x", data_type="TYPE_FP32", dims=[3])])
    shown = documents.plain(config)
    assert shown["input"] == [{"name": "x", "data_type": "TYPE_FP32", "dims": [3]}]
    assert "dynamic_batching" not in shown


def test_every_error_of_the_tree_has_a_status() -> None:
    assert set(refusals.HTTP_STATUSES) == set(statuses.CODES.values())
    limited = errors.ResourceExhausted("OVERLOADED", "later", retry_after_s=0.2)
    assert refusals.http_status(limited) == 429
    assert refusals.headers_of(limited) == {"retry-after": "1"}
    secret = refusals.document_of(errors.Internal("DEFECT", "a secret"))
    assert "a secret" not in json.dumps(secret)


def test_headers_of_the_mesh_never_travel_and_the_callers_do() -> None:
    found = metadata_of(
        [
            ("X-Api-Key", "k"), ("traceparent", "00-1-2-01"), ("X-User", "u"), ("X-User", "v"),
            ("volary-version", "9"), ("Volary-Route", "r"), ("grpc-timeout", "1S"), ("Host", "h"),
            ("x-envoy-attempt-count", "4"), ("x-blob-bin", "AA"), ("te", "trailers"), ("n", "\xe9"),
        ]
    )  # fmt: skip
    assert found == (("x-api-key", "k"), ("traceparent", "00-1-2-01"), ("x-user", "u"))
    with pytest.raises(InvalidArgument):
        metadata_of((f"h{n}", "v") for n in range(65))
