"""A real replica over the wire: V2, by entity, control, events."""

from __future__ import annotations

import asyncio
import json
import math
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from google.protobuf.duration_pb2 import Duration
from inference import grpc_service_pb2 as v2
from redis.asyncio import Redis
from volary.events.v1 import event_pb2
from volary.inference.v1 import control_service_pb2, prediction_service_pb2
from volary.values.v1 import value_pb2
from volary_kit import errors
from volary_kit.revocations import write_revocations
from volary_kit.testing import eventually
from volary_kit.timestamps import from_us, to_us

from . import graphs
from .peers import WATERMARK_US, Keys, Peers
from .replica import Replica, raw_output, raw_request, typed_request

ROWS = [[1.0, 0.0, 0.0], [0.0, 0.0, 0.0]]


def sigmoid(x: float) -> float:
    return 1 / (1 + math.exp(-x))


@pytest.fixture(scope="module")
async def module_peers(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Peers]:
    peers = Peers(Keys(tmp_path_factory.mktemp("keys")))
    await peers.start()
    yield peers
    await peers.stop()


@pytest.fixture(scope="module")
async def serving(
    module_peers: Peers, tmp_path_factory: pytest.TempPathFactory, redis_url: str, engine: str
) -> AsyncIterator[Replica]:
    """One replica with versions 1 (production), 2 and 3 (by entity) of `m`, and two more models."""
    peers = module_peers
    golden = json.dumps(
        {"inputs": {"features": [[0, 0, 0]]}, "outputs": {"probability": [[0.5]]}}
    ).encode()
    background = json.dumps(
        {
            "inputs": {"features": [[0, 0, 0], [1, 1, 1]]},
            "outputs": {"probability": [[0.731058579], [0.982013790]]},
        }
    ).encode()
    declared = json.dumps(
        {
            "features": [f"view.f{i}" for i in range(3)],
            "fallback": {"rule": "0.5 * (view.f0 > 0)"},
            "bands": [
                {"below": 0.6, "code": "LOW", "action": "go"},
                {"code": "HIGH", "action": "hold", "attributions": 2},
            ],
            "reasons": {"view.f2": "THIRD_IS_HIGH", "view.f1": "SECOND_IS_HIGH"},
        }
    ).encode()
    peers.gateway.want(
        peers.registry.add(1, graphs.sigmoid_sum(), golden=golden, production=True),
        peers.registry.add(
            2, graphs.sigmoid_sum(bias=1.0), feature_set="set@3", schema_hash="hash-3"
        ),
        peers.registry.add(
            4,
            graphs.sigmoid_sum(bias=1.0),
            golden=background,
            serving=declared,
            feature_set="set@3",
            schema_hash="hash-3",
        ),
        peers.registry.add(
            3, graphs.sigmoid_sum(bias=3.0), feature_set="set@3", schema_hash="other"
        ),
        peers.registry.add(1, graphs.gather(), model="lookup", production=True),
        peers.registry.add(1, graphs.square_root(), model="root", production=True),
    )
    second = peers.registry.versions["projects/default/models/m/versions/2"]
    second.pipeline.steps.add(name="only", digest=second.digest)
    replica = Replica(tmp_path_factory.mktemp("replica"), peers.keys, peers, redis_url, engine)
    replica.start("--failpoints", VOLARY_INFERENCE_REVOCATIONS_FILE=str(_revoked(peers.keys)))
    await replica.ready()
    yield replica
    replica.close()


async def test_raw_and_typed_calls_get_the_same_answer_with_its_provenance(
    serving: Replica,
) -> None:
    stub = serving.v2()
    call = stub.ModelInfer(raw_request(ROWS))
    raw = await call
    assert raw_output(raw) == pytest.approx([sigmoid(1), 0.5], abs=1e-6)
    assert (raw.model_name, raw.model_version, raw.id) == ("m", "1", "call-1")
    assert list(raw.outputs[0].shape) == [2, 1]
    typed = await stub.ModelInfer(typed_request(ROWS))
    assert list(typed.outputs[0].contents.fp32_contents) == raw_output(raw)
    assert not typed.raw_output_contents
    parameters = raw.parameters
    assert parameters["volary_version"].int64_param == 1
    assert parameters["volary_digest"].string_param.startswith("sha256:")
    assert parameters["volary_tier"].string_param == "model"
    assert parameters["volary_confidence"].double_param == pytest.approx(0.5)
    assert parameters["volary_batch_size"].int64_param == 2
    assert parameters["volary_prediction_id"].string_param.endswith(".1.1")
    trailers = dict(await call.trailing_metadata())
    assert (trailers["volary-version"], trailers["volary-tier"]) == ("1", "model")


async def test_replies_report_the_load_of_their_version_to_envoy(serving: Replica) -> None:
    """The report is among the trailers, where the router looks for it."""
    stub, found = serving.v2(), {}

    async def is_reported() -> bool:
        call = stub.ModelInfer(raw_request([[1.0, 2.0, 3.0]]))
        await call
        found.update(await call.trailing_metadata())
        return "endpoint-load-metrics" in found

    await eventually(is_reported, within_s=30, what="a report of load")
    kind, _, text = found["endpoint-load-metrics"].partition(" ")
    values = {name: float(value) for name, value in (pair.split("=") for pair in text.split(","))}
    assert (kind, values.keys()) == ("TEXT", {"application_utilization", "rps_fractional"})
    seconds_a_call = values["application_utilization"] / values["rps_fractional"]
    assert 0 < seconds_a_call < 10
    assert found["volary-tier"] == "model"


async def test_the_version_is_the_headers_else_the_messages_else_production(
    serving: Replica,
) -> None:
    stub = serving.v2()
    header = (("volary-version", "2"), ("volary-route", "m/r/s/7"))
    assert (await stub.ModelInfer(raw_request(ROWS))).model_version == "1"
    assert (await stub.ModelInfer(raw_request(ROWS, version="2"))).model_version == "2"
    routed = await stub.ModelInfer(raw_request(ROWS, version="1"), metadata=header)
    assert routed.model_version == "2"
    assert routed.parameters["volary_route"].string_param == "m/r/s/7"
    assert raw_output(routed) == pytest.approx([sigmoid(2), sigmoid(1)], abs=1e-6)


@pytest.mark.parametrize(
    ("request_", "kind", "reason"),
    [
        (raw_request(ROWS, model="none"), errors.NotFound, "MODEL_NOT_FOUND"),
        (raw_request(ROWS, version="9"), errors.NotFound, "VERSION_NOT_FOUND"),
        (raw_request(ROWS, version="-1"), errors.NotFound, "VERSION_NOT_FOUND"),
        (raw_request(ROWS, model=""), errors.InvalidArgument, "MODEL_NAME_EMPTY"),
        (raw_request([[math.nan, 0, 0]]), errors.InvalidArgument, "NOT_A_NUMBER"),
        (typed_request([[math.nan, 0, 0]]), errors.InvalidArgument, "NOT_A_NUMBER"),
        (raw_request([[1.0, 2.0]]), errors.InvalidArgument, "SHAPE_MISMATCH"),
    ],
)
async def test_bad_calls_are_refused_with_a_reason(
    serving: Replica,
    request_: v2.ModelInferRequest,
    kind: type[errors.VolaryError],
    reason: str,
) -> None:
    with pytest.raises(kind) as caught:
        await serving.v2().ModelInfer(request_)
    assert caught.value.reason == reason


def malformed() -> list[tuple[str, v2.ModelInferRequest]]:
    """Requests that contradict themselves, by the reason that refuses them."""
    both = raw_request(ROWS)
    both.inputs[0].contents.fp32_contents.append(1.0)
    wrong_field = typed_request(ROWS)
    wrong_field.inputs[0].contents.int_contents.append(1)
    many_raw = raw_request(ROWS)
    many_raw.raw_input_contents.append(b"")
    half = typed_request(ROWS)
    half.inputs[0].datatype = "FP16"
    shared_memory = raw_request(ROWS)
    shared_memory.inputs[0].parameters["shared_memory_region"].string_param = "r"
    parameter = raw_request(ROWS)
    parameter.parameters["sequence_id"].int64_param = 1
    output = raw_request(ROWS)
    output.outputs.add(name="other")
    huge = raw_request(ROWS)
    huge.inputs[0].shape[:] = [1 << 40, 1 << 40]
    return [
        ("CONTENTS_TWICE", both),
        ("CONTENTS_MISMATCH", wrong_field),
        ("RAW_COUNT_MISMATCH", many_raw),
        ("RAW_ONLY", half),
        ("PARAMETER_UNKNOWN", shared_memory),
        ("PARAMETER_UNKNOWN", parameter),
        ("OUTPUT_UNKNOWN", output),
        ("SHAPE_INVALID", huge),
        ("INPUTS_INCOMPLETE", v2.ModelInferRequest(model_name="m")),
    ]


async def test_requests_that_contradict_themselves_are_invalid(serving: Replica) -> None:
    stub = serving.v2()
    for reason, request in malformed():
        with pytest.raises(errors.InvalidArgument) as caught:
            await stub.ModelInfer(request)
        assert caught.value.reason == reason
    assert (await stub.ModelInfer(raw_request(ROWS))).model_version == "1"


async def test_a_poisoned_row_harms_no_batch_mate(serving: Replica) -> None:
    stub = serving.v2()

    async def look_up(index: int) -> float:
        request = v2.ModelInferRequest(model_name="lookup")
        tensor = request.inputs.add(name="x", datatype="INT64", shape=[1])
        tensor.contents.int64_contents.append(index)
        return (await stub.ModelInfer(request)).outputs[0].contents.fp32_contents[0]

    indices = [0, 1, 2, 99] * 16
    answers = await asyncio.gather(*map(look_up, indices), return_exceptions=True)
    for index, answer in zip(indices, answers, strict=True):
        if index == 99:
            assert isinstance(answer, errors.Internal)
        else:
            assert answer == 10.0 * (index + 1)


async def test_a_version_that_answers_nan_fails_the_call(serving: Replica) -> None:
    request = v2.ModelInferRequest(model_name="root")
    request.inputs.add(name="x", datatype="FP32", shape=[1, 1]).contents.fp32_contents.append(-1)
    call = serving.v2().ModelInfer(request)
    with pytest.raises(errors.Internal) as caught:
        await call
    assert caught.value.reason == "OUTPUT_NOT_A_NUMBER"
    trailers = dict(await call.trailing_metadata())
    assert (trailers["volary-version"], trailers["volary-tier"]) == ("1", "none")


async def test_the_server_describes_itself_and_its_models(serving: Replica) -> None:
    stub = serving.v2()
    assert (await stub.ServerLive(v2.ServerLiveRequest())).live
    assert (await stub.ServerReady(v2.ServerReadyRequest())).ready
    assert (await stub.ServerMetadata(v2.ServerMetadataRequest())).name == "volary"
    assert (await stub.ModelReady(v2.ModelReadyRequest(name="m"))).ready
    assert not (await stub.ModelReady(v2.ModelReadyRequest(name="m", version="9"))).ready
    metadata = await stub.ModelMetadata(v2.ModelMetadataRequest(name="m"))
    assert list(metadata.versions) == ["1", "2", "3", "4"]
    assert list(metadata.inputs[0].shape) == [-1, 3]
    config = (await stub.ModelConfig(v2.ModelConfigRequest(name="m"))).config
    assert (config.max_batch_size, list(config.input[0].dims)) == (64, [3])
    assert config.input[0].data_type == v2.TYPE_FP32
    composed = (await stub.ModelConfig(v2.ModelConfigRequest(name="m", version="2"))).config
    shown = json.loads(composed.parameters["volary_pipeline"].string_value)
    assert [step["name"] for step in shown["steps"]] == ["only"]
    assert not config.parameters
    await stub.ModelInfer(raw_request(ROWS))
    found = await stub.ModelStatistics(v2.ModelStatisticsRequest(name="m", version="1"))
    [statistics] = found.model_stats
    assert statistics.inference_count >= 2
    assert 1 <= statistics.execution_count <= statistics.inference_stats.success.count
    assert statistics.batch_stats[-1].compute_infer.ns > 0
    index = await stub.RepositoryIndex(v2.RepositoryIndexRequest())
    names = [(row.name, row.version, row.state) for row in index.models]
    assert ("m", "2", "READY") in names
    with pytest.raises(errors.Unimplemented):
        inside = serving.v2(serving.keys.service_token())
        await inside.CudaSharedMemoryStatus(v2.CudaSharedMemoryStatusRequest())


def _revoked(keys: Keys) -> Path:
    return keys.jwks.with_name("revoked.json")


async def test_a_revoked_key_is_refused_by_a_replica_that_is_called_directly(
    serving: Replica,
) -> None:
    key_id = f"lost-{serving.engine}"
    lost, other = serving.keys.api_key(key_id=key_id), serving.keys.api_key(key_id="other")
    request = raw_request(ROWS)
    await serving.v2(lost).ModelInfer(request)
    write_revocations(_revoked(serving.keys), [key_id])
    stub, found = serving.v2(lost), {}

    async def is_refused() -> bool:
        try:
            await stub.ModelInfer(request)
        except errors.Unauthenticated as error:
            found["reason"] = error.reason
        return "reason" in found

    await eventually(is_refused, within_s=30, what="refusal of the revoked key")
    assert found["reason"] == "CREDENTIAL_REVOKED"
    await serving.v2(other).ModelInfer(request)


async def test_another_project_sees_nothing(serving: Replica) -> None:
    foreign = serving.v2(serving.keys.api_key(project="other"))
    with pytest.raises(errors.NotFound):
        await foreign.ModelInfer(raw_request(ROWS))
    assert not (await foreign.RepositoryIndex(v2.RepositoryIndexRequest())).models


async def test_a_stream_answers_each_message_and_stays_with_its_model(serving: Replica) -> None:
    requests = [raw_request(ROWS), raw_request([[1.0]]), raw_request(ROWS, model="lookup")]
    replies = [reply async for reply in serving.v2().ModelStreamInfer(iter(requests))]
    assert raw_output(replies[0].infer_response) == pytest.approx([sigmoid(1), 0.5], abs=1e-6)
    assert replies[1].error_message.startswith("SHAPE_MISMATCH")
    assert replies[2].error_message.startswith("MODEL_CHANGED")


async def test_a_streams_replies_are_marked_as_last_where_that_is_asked(serving: Replica) -> None:
    good, bad, plain = raw_request(ROWS), raw_request([[1.0]]), raw_request(ROWS)
    for request in (good, bad):
        request.parameters["triton_enable_empty_final_response"].bool_param = True
    call = serving.v2().ModelStreamInfer(iter([good, bad, plain]))
    replies = [reply.infer_response async for reply in call]
    marked = [reply.parameters["triton_final_response"].bool_param for reply in replies]
    assert marked == [True, True, False]
    trailers = dict(await call.trailing_metadata())
    assert (trailers["volary-version"], trailers["volary-tier"]) == ("1", "model")


async def test_a_stream_of_what_is_no_message_ends_with_a_status(serving: Replica) -> None:
    async with serving.channel() as channel:
        path = "/inference.GRPCInferenceService/ModelStreamInfer"
        stream = channel.stream_stream(path)
        good = raw_request(ROWS).SerializeToString()
        read = v2.ModelStreamInferResponse.FromString
        ended = asyncio.Event()

        async def requests() -> AsyncIterator[bytes]:
            yield good
            yield b"\x0a\xff\x01abc"
            await ended.wait()  # to write to a stream that has ended would hide its status

        call = stream(requests())
        replies: list[v2.ModelStreamInferResponse] = []
        with pytest.raises(errors.InvalidArgument):
            async for data in call:
                replies.append(read(data))  # noqa: PERF401 - what came before the error counts
        ended.set()
    assert [reply.infer_response.model_version for reply in replies] == ["1"]


async def test_a_score_comes_with_what_it_means(serving: Replica) -> None:
    stub = serving.v2()
    for row, code, action in (([-1.0, 0, 0], "LOW", "go"), ([1.0, 0, 0], "HIGH", "hold")):
        reply = await stub.ModelInfer(raw_request([row], version="4"))
        assert reply.parameters["volary_tier"].string_param == "model"
        assert reply.parameters["volary_reason_codes"].string_param == code
        assert reply.parameters["volary_action"].string_param == action
    both = await stub.ModelInfer(raw_request(ROWS, version="4"))
    assert "volary_action" not in both.parameters  # of two scores neither is the reply's


async def test_a_rule_answers_what_there_is_no_room_for(serving: Replica) -> None:
    await serving.v2().ModelInfer(raw_request(ROWS[:1], version="4"))
    late = raw_request(ROWS[:1], version="4")
    late.parameters["timeout"].int64_param = 1
    call = serving.v2().ModelInfer(late)
    reply = await call
    assert reply.parameters["volary_tier"].string_param == "rule"
    assert raw_output(reply) == [0.5]
    trailers = dict(await call.trailing_metadata())
    assert (trailers["volary-version"], trailers["volary-tier"]) == ("4", "rule")
    forged = (("volary-refused", "1"),)
    asked = serving.v2().ModelInfer(raw_request(ROWS[:1], version="4"), metadata=forged)
    assert (await asked).parameters["volary_tier"].string_param == "model"


def ask(version: int = 2, **more: object) -> prediction_service_pb2.PredictRequest:
    return prediction_service_pb2.PredictRequest(
        model="m",
        version=version,
        entity_keys={"carrier": "AA"},
        request_fields={"distance": value_pb2.Value(number_value=2.0)},
        event_time=from_us(1_700_000_000_000_001),
        subject="flight-1",
        **more,  # pyright: ignore[reportArgumentType]
    )


async def test_a_prediction_by_entity_fetches_its_features(
    serving: Replica, module_peers: Peers
) -> None:
    reply = await serving.predictions().Predict(ask(min_watermark=from_us(WATERMARK_US)))
    expected = sigmoid(0.25 - 1.5 + 2.0 + 1.0)
    assert reply.score == pytest.approx(expected, abs=1e-6)
    assert list(reply.outputs["probability"].shape) == [1, 1]
    provenance = reply.provenance
    assert (provenance.version, provenance.tier) == (2, "model")
    assert provenance.backend == "onnxruntime-cpu"
    assert (provenance.feature_set, provenance.schema_hash) == ("set@3", "hash-3")
    assert provenance.confidence == pytest.approx(max(expected, 1 - expected), abs=1e-6)
    assert to_us(reply.feature_watermark) == WATERMARK_US
    assert list(reply.defaulted_features) == ["view.f2"]
    asked = module_peers.features.requests[-1]
    assert (asked.feature_set, asked.version) == ("projects/default/featureSets/set", 3)
    assert list(asked.entities["carrier"].keys) == ["AA"]
    assert asked.request_fields["distance"].values[0].number_value == 2.0
    assert to_us(asked.event_times[0]) == 1_700_000_000_000_001
    assert to_us(asked.min_watermark) == WATERMARK_US


async def test_a_prediction_by_entity_has_a_priority(serving: Replica) -> None:
    stub = serving.predictions()
    for priority in (0, 1, 3):
        assert (await stub.Predict(ask(priority=priority))).provenance.tier == "model"
    with pytest.raises(errors.InvalidArgument) as caught:
        await stub.Predict(ask(priority=4))
    assert list(caught.value.violations) == ["priority"]


async def test_another_schema_than_the_trained_one_is_refused(serving: Replica) -> None:
    with pytest.raises(errors.FailedPrecondition) as caught:
        await serving.predictions().Predict(ask(version=3))
    assert caught.value.reason == "SCHEMA_MISMATCH"
    with pytest.raises(errors.FailedPrecondition) as caught:
        await serving.predictions().Predict(ask(version=0))
    assert caught.value.reason == "FEATURE_SET_MISSING"


async def test_every_reply_becomes_one_event(serving: Replica, redis: Redis) -> None:
    headers = (
        ("x-request-id", "key-7"),
        ("volary-route", "m/r/s/7"),
        ("volary-shadow", "true"),
        ("x-envoy-attempt-count", "2"),
    )
    await serving.predictions().Predict(ask(), metadata=headers)
    await serving.v2().ModelInfer(raw_request(ROWS[:1]), metadata=(("x-request-id", "key-8"),))

    async def entries() -> dict[str, event_pb2.Event]:
        # two engines write for themselves, in any order, and late what was asked before this test
        found = await redis.xrange("volary:predictions")
        read = [event_pb2.Event.FromString(fields[b"e"]) for _, fields in found]
        events = {event.id: event for event in read}
        return events if {"key-7.2.2", "key-8.1.1"} <= events.keys() else {}

    found = await eventually(entries, what="two events")
    by_entity, by_tensor = found["key-7.2.2"], found["key-8.1.1"]
    assert by_entity.project == "default"
    assert to_us(by_entity.event_time) == 1_700_000_000_000_001
    seen = by_entity.prediction
    assert (seen.prediction_id, seen.request_key) == ("key-7.2.2", "key-7")
    assert (seen.model, seen.version, seen.tier, seen.code) == ("m", 2, "model", 0)
    assert (seen.route, seen.shadow, seen.subject) == ("m/r/s/7", True, "flight-1")
    assert dict(seen.entity_keys) == {"carrier": "AA"}
    assert list(seen.features) == [0.25, -1.5, 2.0]
    assert list(seen.outputs) == pytest.approx([sigmoid(1.75)], abs=1e-6)
    assert seen.schema_hash == "hash-3"
    assert to_us(seen.feature_watermark) == WATERMARK_US
    assert list(by_tensor.prediction.features) == ROWS[0]
    listed = await serving.control().ListVersions(control_service_pb2.ListVersionsRequest())
    assert listed.dropped_events == 0


async def test_the_event_of_a_reply_says_what_it_recommended(
    serving: Replica, redis: Redis
) -> None:
    reply = await serving.predictions().Predict(ask(version=4))

    async def entry() -> event_pb2.Event | None:
        for _, fields in await redis.xrange("volary:predictions"):
            event = event_pb2.Event.FromString(fields[b"e"])
            if event.id == reply.provenance.prediction_id:
                return event
        return None

    seen = (await eventually(entry, what="the event")).prediction
    assert list(seen.reason_codes) == list(reply.decision.reason_codes) != []
    assert seen.action == reply.decision.action != ""


def failpoint(**more: object) -> control_service_pb2.ArmFailpointRequest:
    failpoint = control_service_pb2.Failpoint(
        id="f",
        project="default",
        model="m",
        version=2,
        **more,  # pyright: ignore[reportArgumentType]
    )
    return control_service_pb2.ArmFailpointRequest(failpoint=failpoint)


async def test_a_failpoint_breaks_its_version_and_no_other(serving: Replica) -> None:
    control, stub = serving.control(), serving.v2()
    await control.ArmFailpoint(failpoint(fail_share=1.0, fail_code=14))
    with pytest.raises(errors.Unavailable) as caught:
        await stub.ModelInfer(raw_request(ROWS, version="2"))
    assert caught.value.reason == "FAILPOINT"
    await control.ArmFailpoint(failpoint(fail_share=1.0))
    with pytest.raises(errors.Internal) as internal:
        await stub.ModelInfer(raw_request(ROWS, version="2"))
    assert internal.value.reason == "FAILPOINT"
    await stub.ModelInfer(raw_request(ROWS))
    await control.ArmFailpoint(failpoint(slow_share=1.0, delay=Duration(seconds=30)))
    with pytest.raises(errors.DeadlineExceeded):
        await stub.ModelInfer(raw_request(ROWS, version="2"), timeout=0.2)
    disarmed = await control.DisarmFailpoint(control_service_pb2.DisarmFailpointRequest())
    assert disarmed.disarmed == 1
    await stub.ModelInfer(raw_request(ROWS, version="2"))


async def test_the_control_port_takes_service_tokens_only(serving: Replica) -> None:
    request = control_service_pb2.ListVersionsRequest()
    with pytest.raises(errors.PermissionDenied):
        await serving.control(serving.keys.api_key("operator", "admin")).ListVersions(request)
    listed = await serving.control().ListVersions(request)
    assert [(row.model, row.version) for row in listed.versions] == [
        ("lookup", 1),
        ("m", 1),
        ("m", 2),
        ("m", 3),
        ("m", 4),
        ("root", 1),
    ]
    assert listed.engine == serving.engine


async def test_a_prediction_is_explained_and_its_parts_add_up(serving: Replica) -> None:
    def request(**more: int) -> prediction_service_pb2.ExplainRequest:
        return prediction_service_pb2.ExplainRequest(model="m", prediction=ask(version=4), **more)

    reply = await serving.predictions().Explain(request(max_evaluations=200))
    parts = {each.feature: each.contribution for each in reply.attributions}
    assert reply.base_score + sum(parts.values()) == pytest.approx(reply.prediction.score, abs=1e-6)
    assert reply.evaluations == 200
    sizes = [abs(each.contribution) for each in reply.attributions]
    assert sizes == sorted(sizes, reverse=True)
    assert parts["view.f1"] < 0 < parts["view.f2"]
    assert {each.feature: each.value for each in reply.attributions}["view.f2"] == 2.0
    # the second lowered the score: it is no reason for it
    assert list(reply.prediction.decision.reason_codes) == ["HIGH", "THIRD_IS_HIGH"]
    assert reply.prediction.decision.action == "hold"
    with pytest.raises(errors.InvalidArgument) as caught:
        await serving.predictions().Explain(request(max_evaluations=3))
    assert caught.value.reason == "BUDGET_TOO_SMALL"


async def test_a_rule_answers_for_a_version_that_fails_and_the_reply_says_so(
    serving: Replica,
) -> None:
    fault = control_service_pb2.Failpoint(
        id="rule", project="default", model="m", version=4, fail_share=1.0, fail_code=13
    )
    control = serving.control()
    await control.ArmFailpoint(control_service_pb2.ArmFailpointRequest(failpoint=fault))
    try:
        call = serving.predictions().Predict(ask(version=4))
        reply = await call
        trailers = dict(await call.trailing_metadata())
    finally:
        await control.DisarmFailpoint(control_service_pb2.DisarmFailpointRequest(id="rule"))
    assert (reply.score, reply.provenance.tier) == (0.5, "rule")
    assert trailers["volary-tier"] == "rule"
    assert list(reply.decision.reason_codes) == ["LOW"]
    assert (await serving.predictions().Predict(ask(version=4))).provenance.tier == "model"
