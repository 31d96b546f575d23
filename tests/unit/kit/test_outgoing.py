"""What leaves with a call: deadline, credential, trace; and when it is tried again."""

from __future__ import annotations

from typing import Any

import jwt
import pytest
from volary.gateway.v1 import traffic_service_pb2
from volary_kit.calls import Call, Principal, act_for, entered
from volary_kit.channels import Channels
from volary_kit.clock import SystemClock
from volary_kit.errors import (
    Aborted,
    DeadlineExceeded,
    InvalidArgument,
    NotFound,
    ResourceExhausted,
    Unavailable,
    VolaryError,
)
from volary_kit.identity import SigningKey, TokenSource
from volary_kit.outgoing import EdgeDress, MeshDress, Retry
from volary_kit.outgoing.dress import HOP_S, with_request_id
from volary_kit.policies import policies
from volary_kit.testing import ManualClock, new_call

GET = "/volary.gateway.v1.TrafficService/GetTraffic"
SET = "/volary.gateway.v1.TrafficService/SetTraffic"
WATCH = "/grpc.health.v1.Health/Watch"


@pytest.fixture
def dress() -> MeshDress:
    return MeshDress(TokenSource(SigningKey.generate("registry"), SystemClock()))


def claims(metadata: Any) -> dict[str, Any]:
    token = dict(metadata)["authorization"].removeprefix("Bearer ")
    return jwt.decode(token, options={"verify_signature": False})


def test_outside_of_a_call_the_methods_default_holds(dress: MeshDress) -> None:
    assert dress(GET, None, ()).timeout_s == policies()[GET].default_deadline_s
    assert dress(GET, 0.5, ()).timeout_s == 0.5
    assert dress(WATCH, None, ()).timeout_s is None


def test_a_deadline_shrinks_at_every_hop(dress: MeshDress) -> None:
    clock = ManualClock()
    call = new_call(timeout_s=2.0, clock=clock)
    with entered(call):
        assert dress(GET, None, ()).timeout_s == pytest.approx(2.0 - HOP_S)
        assert dress(GET, 30.0, ()).timeout_s == pytest.approx(2.0 - HOP_S)
        assert dress(WATCH, None, ()).timeout_s == pytest.approx(2.0 - HOP_S)
        clock.advance(1.5)
        assert dress(GET, None, ()).timeout_s == pytest.approx(0.5 - HOP_S)
        clock.advance(0.5)
        with pytest.raises(DeadlineExceeded):
            dress(GET, None, ())


def test_a_service_speaks_for_the_one_who_called_it(dress: MeshDress) -> None:
    with entered(new_call(project="birds", subject="principals/ann")) as call:
        found = dress(GET, None, ())
    told = claims(found.metadata)
    assert (told["sub"], told["prj"], told["obo"]) == (
        "services/registry",
        "birds",
        "principals/ann",
    )
    assert dict(found.metadata)["x-request-id"] == call.request_key


def test_the_original_principal_survives_a_chain(dress: MeshDress) -> None:
    call: Call = new_call()
    service = frozenset({"service"})
    call.principal = Principal("services/monitor", "birds", service, "principals/ann")
    with entered(call):
        assert claims(dress(GET, None, ()).metadata)["obo"] == "principals/ann"


def test_background_work_says_for_whom_it_calls(dress: MeshDress) -> None:
    with act_for("birds"):
        told = claims(dress(GET, None, ()).metadata)
    assert told["prj"] == "birds"
    assert "obo" not in told


def test_a_credential_that_is_given_is_kept(dress: MeshDress) -> None:
    metadata = dress(GET, None, (("x-api-key", "mine"),)).metadata
    assert dict(metadata)["x-api-key"] == "mine"
    assert "authorization" not in dict(metadata)


def test_a_public_client_sends_its_key_and_a_deadline() -> None:
    found = EdgeDress("key")(GET, None, ())
    assert dict(found.metadata)["x-api-key"] == "key"
    assert found.timeout_s == policies()[GET].default_deadline_s
    assert EdgeDress("key", timeout_s=1.0)(GET, None, ()).timeout_s == 1.0
    assert EdgeDress("key", timeout_s=1.0)(WATCH, None, ()).timeout_s is None


async def test_a_peer_without_an_address_is_unavailable_by_name() -> None:
    channels = Channels("monitor", {"registry": None}, MeshDress())
    call = channels.to("registry").unary_unary(GET)
    with pytest.raises(Unavailable) as caught:
        await call(b"")
    assert "VOLARY_MONITOR_REGISTRY_ADDRESS" in caught.value.message
    assert not channels.is_configured("registry")
    await channels.close()


def test_a_request_id_is_made_once_and_never_replaced() -> None:
    row = policies()[SET]
    empty = traffic_service_pb2.SetTrafficRequest(name="x")
    made = with_request_id(row, empty)
    assert made.request_id  # pyright: ignore[reportAttributeAccessIssue]
    assert not empty.request_id
    assert with_request_id(row, made) is made
    assert with_request_id(policies()[GET], empty) is empty


class TestRetry:
    retry = Retry(attempts=3, first_s=0.1, longest_s=0.3, factor=2)

    @pytest.mark.parametrize(
        "error",
        [
            Unavailable("DOWN", "down"),
            Aborted("REQUEST_RUNNING", "running", retry_after_s=0.1),
            ResourceExhausted("FULL", "full", retry_after_s=0.1),
        ],
    )
    def test_what_may_succeed_later_is_tried_again(self, error: VolaryError) -> None:
        assert self.retry.delay_s(1, error, None) is not None
        assert self.retry.delay_s(3, error, None) is None

    @pytest.mark.parametrize(
        "error",
        [
            NotFound("NO", "no"),
            InvalidArgument("BAD", "bad"),
            Aborted("STALE_GENERATION", "stale"),
            ResourceExhausted("QUOTA", "quota"),
        ],
    )
    def test_what_will_fail_again_is_not(self, error: VolaryError) -> None:
        assert self.retry.delay_s(1, error, None) is None

    def test_delays_stay_within_their_bound_and_keep_the_servers_hint(self) -> None:
        hinted = Unavailable("DOWN", "down", retry_after_s=5)
        for _ in range(200):
            delay_s = self.retry.delay_s(2, hinted, None)
            assert delay_s is not None
            assert 5 <= delay_s <= 5.2

    def test_no_attempt_begins_after_the_deadline(self) -> None:
        hinted = Unavailable("DOWN", "down", retry_after_s=5)
        assert self.retry.delay_s(1, hinted, 4.0) is None
