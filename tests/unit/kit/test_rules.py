"""The rules as pure functions: a call in, a refusal or nothing out."""

from __future__ import annotations

import math
import random
import struct
from dataclasses import replace
from typing import Any

import pytest
from google.protobuf.message import Message
from google.protobuf.struct_pb2 import Struct
from google.rpc.status_pb2 import Status
from inference import grpc_service_pb2 as pb
from prometheus_client import CollectorRegistry
from volary.gateway.v1 import traffic_service_pb2
from volary_kit.calls import ANONYMOUS, Call, Principal
from volary_kit.errors import (
    DeadlineExceeded,
    InvalidArgument,
    PermissionDenied,
    ResourceExhausted,
    Unauthenticated,
    VolaryError,
)
from volary_kit.metrics import BUCKETS_S, CallMetrics
from volary_kit.rules import Outcome, Rule, Rules
from volary_kit.rules.authentication import Authentication
from volary_kit.rules.concurrency import Concurrency
from volary_kit.rules.deadline import Deadline
from volary_kit.rules.metrics import Metrics
from volary_kit.rules.policy import Authorization
from volary_kit.rules.validation import SEARCHED_BYTES, Validation, has_rules, nan_path
from volary_kit.testing import ManualClock, new_call

OK = Outcome(Status(), 0.0)
NAN = float("nan")


def call_with(clock: ManualClock | None = None, **changes: Any) -> Call:
    call = new_call(clock=clock or ManualClock())
    call.policy = replace(call.policy, **changes)
    return call


class TestDeadline:
    def test_none_gets_the_default(self) -> None:
        call = call_with(default_deadline_s=3, max_deadline_s=9)
        Deadline().before(call)
        assert call.remaining_s() == 3

    @pytest.mark.parametrize(("asked_s", "given_s"), [(2.0, 2.0), (9.0, 9.0), (3_600.0, 9.0)])
    def test_a_long_one_is_cut(self, asked_s: float, given_s: float) -> None:
        call = call_with(default_deadline_s=3, max_deadline_s=9)
        call.client_deadline_s = asked_s
        Deadline().before(call)
        assert call.remaining_s() == given_s

    def test_an_unbounded_stream_has_none(self) -> None:
        call = call_with(unbounded=True)
        call.client_deadline_s = 1.0
        Deadline().before(call)
        assert call.remaining_s() == math.inf

    def test_a_call_that_waited_too_long_is_refused(self) -> None:
        clock = ManualClock()
        call = call_with(clock, default_deadline_s=3, max_deadline_s=9)
        clock.advance(4)
        with pytest.raises(DeadlineExceeded):
            Deadline().before(call)


class Verifier:
    def verify(self, token: str) -> Principal:
        if token != "good":
            raise Unauthenticated("CREDENTIAL_INVALID", "no")
        return Principal("principals/ann", roles=frozenset({"viewer"}))


class TestAuthentication:
    @pytest.mark.parametrize(
        "metadata",
        [
            {"x-api-key": "good"},
            {"authorization": "Bearer good"},
            {"authorization": "bearer  good"},
            {"x-api-key": "good", "authorization": "Bearer bad"},
        ],
    )
    def test_either_header_works(self, metadata: dict[str, str | bytes]) -> None:
        call = new_call()
        call.metadata = metadata
        Authentication(Verifier()).before(call)
        assert call.principal.subject == "principals/ann"

    @pytest.mark.parametrize(
        ("metadata", "reason"),
        [
            ({}, "CREDENTIAL_MISSING"),
            ({"x-api-key": ""}, "CREDENTIAL_MISSING"),
            ({"x-api-key": b"good"}, "CREDENTIAL_MISSING"),
            ({"authorization": "Basic good"}, "CREDENTIAL_MISSING"),
            ({"authorization": "Bearer "}, "CREDENTIAL_MISSING"),
            ({"x-api-key": "bad"}, "CREDENTIAL_INVALID"),
        ],
    )
    def test_anything_else_is_refused(self, metadata: Any, reason: str) -> None:
        call = new_call()
        call.metadata = metadata
        with pytest.raises(Unauthenticated) as caught:
            Authentication(Verifier()).before(call)
        assert caught.value.reason == reason

    def test_an_anonymous_row_asks_for_nothing(self) -> None:
        call = call_with(allow=frozenset({"anonymous"}))
        call.principal = ANONYMOUS
        Authentication(Verifier()).before(call)
        Authorization().before(call)
        assert call.principal is ANONYMOUS


class TestAuthorization:
    def test_one_common_role_is_enough(self) -> None:
        call = call_with(allow=frozenset({"viewer", "operator"}))
        call.principal = Principal("principals/ann", roles=frozenset({"approver", "viewer"}))
        Authorization().before(call)

    @pytest.mark.parametrize("roles", [set(), {"predictor"}, {"ADMIN"}, {""}])
    def test_no_common_role_is_refused(self, roles: set[str]) -> None:
        call = call_with(allow=frozenset({"viewer", "operator"}))
        call.principal = Principal("principals/ann", roles=frozenset(roles))
        with pytest.raises(PermissionDenied):
            Authorization().before(call)

    def test_an_empty_row_refuses_everyone(self) -> None:
        call = call_with(allow=frozenset())
        with pytest.raises(PermissionDenied):
            Authorization().before(call)


class TestValidation:
    def test_every_broken_field_is_named(self) -> None:
        request = traffic_service_pb2.SetTrafficRequest()
        request.weights.add(version=-1, weight=1)
        with pytest.raises(InvalidArgument) as caught:
            Validation().received(new_call(), request)
        assert {"name", "weights[0].version"} <= set(caught.value.violations)

    def test_a_nan_is_found_at_any_depth(self) -> None:
        request = Struct()
        request["outer"] = {"inner": [1.0, {"deep": NAN}]}
        path = nan_path(request)
        assert path is not None
        assert path.startswith("fields['outer']")
        assert "'deep'" in path

    def test_every_kind_of_nan_is_found(self) -> None:
        draw = random.Random(3)
        for _ in range(500):
            # any sign, quiet or signalling, any payload
            bits = draw.getrandbits(1) << 63 | 0x7FF << 52 | draw.randrange(1, 1 << 52)
            (value,) = struct.unpack("<d", struct.pack("<Q", bits))
            assert math.isnan(value)
            request = Struct()
            request["a"] = draw.random()
            request["b"] = value
            assert nan_path(request) == "fields['b'].number_value"

    def test_a_nan_is_found_in_a_message_too_large_to_search(self) -> None:
        request = Struct()
        request["text"] = "x" * (SEARCHED_BYTES + 1)
        request["b"] = NAN
        assert nan_path(request) == "fields['b'].number_value"

    def test_infinities_are_not_nan(self) -> None:
        request = Struct()
        request["both"] = [math.inf, -math.inf]
        assert nan_path(request) is None


class TestConcurrency:
    def test_streams_and_calls_are_counted_apart(self) -> None:
        rule = Concurrency(max_calls=1, max_streams=1)
        rules = Rules([rule])
        call, stream = call_with(), call_with(unbounded=True)
        rules.before(call)
        rules.before(stream)
        for kind in (call_with(), call_with(unbounded=True)):
            with pytest.raises(ResourceExhausted):
                rules.before(kind)
            rules.after(kind, OK)
        rules.after(call, OK)
        rules.before(call_with())


class TestRules:
    def test_after_runs_backwards_over_what_was_entered(self) -> None:
        seen: list[str] = []

        class Noted(Rule):
            def __init__(self, name: str, refusal: VolaryError | None = None) -> None:
                self.name, self.refusal = name, refusal

            def before(self, call: Call) -> None:
                seen.append(f"before {self.name}")
                if self.refusal is not None:
                    raise self.refusal

            def after(self, call: Call, outcome: Outcome) -> None:
                seen.append(f"after {self.name}")

        rules = Rules([Noted("a"), Noted("b", PermissionDenied("NO", "no")), Noted("c")])
        call = new_call()
        with pytest.raises(PermissionDenied):
            rules.before(call)
        rules.after(call, OK)
        assert seen == ["before a", "before b", "after b", "after a"]


def test_calls_of_every_engine_are_counted_together() -> None:
    registry = CollectorRegistry()
    metrics = CallMetrics(registry)
    rule, call = Metrics(metrics), new_call()
    rule.before(call)
    rule.before(call)
    rule.after(call, Outcome(Status(), BUCKETS_S[0]))
    metrics.add(call.method, {"OK": 2, "ABORTED": 1}, [0, 1, *[0] * (len(BUCKETS_S) - 2), 2], 70.0)

    def sample(name: str, **labels: str) -> float | None:
        return registry.get_sample_value(name, {"method": call.method, **labels})

    assert sample("volary_rpc_started_total") == 5
    assert sample("volary_rpc_running") == 1
    metrics.of(call.method).add_running(3)
    assert sample("volary_rpc_running") == 4
    assert sample("volary_rpc_finished_total", code="OK") == 3
    assert sample("volary_rpc_finished_total", code="ABORTED") == 1
    assert sample("volary_rpc_seconds_bucket", le="0.0005") == 1  # a bound counts what it equals
    assert sample("volary_rpc_seconds_bucket", le="0.001") == 2
    assert sample("volary_rpc_seconds_bucket", le="+Inf") == 4
    assert sample("volary_rpc_seconds_count") == 4
    assert sample("volary_rpc_seconds_sum") == 70.0 + BUCKETS_S[0]
    with pytest.raises(ValueError, match="Duplicated"):
        CallMetrics(registry)


@pytest.mark.parametrize("kind", [pb.ModelInferRequest, Struct])
def test_what_has_no_rule_is_not_asked_for_one(kind: type[Message]) -> None:
    assert not has_rules(kind.DESCRIPTOR)
    assert has_rules(traffic_service_pb2.ListTrafficRequest.DESCRIPTOR)


def test_a_nan_is_found_wherever_a_message_may_hold_one() -> None:
    request = pb.ModelInferRequest()
    request.inputs.add(name="a").contents.fp32_contents.extend([1.0, -1.0])
    request.parameters["p"].double_param = 1.0
    assert nan_path(request) is None
    request.inputs.add().contents.fp64_contents.append(NAN)
    assert nan_path(request) == "inputs[1].contents.fp64_contents"
    del request.inputs[1]
    request.outputs.add().parameters["q"].double_param = NAN
    assert nan_path(request) == "outputs[0].parameters['q'].double_param"
