from __future__ import annotations

import pytest
from volary_gateway.domain.fleet import LEASE_US, Desired, Fleet, Held, Replica, VersionState
from volary_gateway.domain.names import VersionName
from volary_kit.errors import Aborted, FailedPrecondition

V1 = VersionName("default", "flights", 1)
DIGEST = "sha256:" + "a" * 64
OTHER = "sha256:" + "b" * 64


def replica(name: str = "a", incarnation: str = "one", digest: str = DIGEST, **more) -> Replica:
    state = more.pop("state", VersionState.READY)
    return Replica(
        id=name,
        address=f"127.0.0.1:{ord(name[0])}",
        incarnation=incarnation,
        versions={V1: Held(digest, state)},
        **more,
    )


def desired() -> Desired:
    return Desired(1, {V1: DIGEST})


def test_endpoints_are_the_replicas_that_have_the_wanted_digest_ready():
    fleet = Fleet()
    fleet.report(replica("a"), 0)
    fleet.report(replica("b", state=VersionState.WARMING), 0)
    fleet.report(replica("c", digest=OTHER), 0)
    fleet.report(replica("d", is_draining=True), 0)
    assert fleet.endpoints(desired()) == {V1: ("127.0.0.1:97",)}


def test_version_that_is_not_wanted_has_no_endpoints():
    fleet = Fleet()
    fleet.report(replica(), 0)
    assert fleet.endpoints(Desired()) == {}


def test_lease_keeps_a_silent_replica_and_then_withdraws_it():
    fleet = Fleet()
    fleet.report(replica(), 0)
    assert fleet.expire(LEASE_US - 1) == ()
    assert fleet.endpoints(desired())
    assert fleet.expire(LEASE_US) == ("a",)
    assert fleet.endpoints(desired()) == {}


def test_lease_begins_anew_when_gateway_listens_again():
    fleet = Fleet([replica()])
    fleet.renew(LEASE_US)
    assert fleet.expire(LEASE_US + 1) == ()


def test_report_says_whether_anything_changed():
    fleet = Fleet()
    assert fleet.report(replica(), 0)
    assert not fleet.report(replica(queue_us=5, revision=9), 10)
    assert fleet.report(replica(state=VersionState.DRAINING), 20)
    assert fleet.report(replica(state=VersionState.DRAINING), 20 + LEASE_US)


def test_thawed_process_is_fenced_off_by_its_successor():
    fleet = Fleet()
    fleet.report(replica(incarnation="old"), 0)
    fleet.report(replica(incarnation="new"), 1)
    with pytest.raises(Aborted) as refused:
        fleet.report(replica(incarnation="old"), 2)
    assert refused.value.reason == "REPLICA_REPLACED"


def test_readiness_is_decided_by_all_ready_or_one_refusal():
    fleet = Fleet()
    assert not fleet.readiness(V1, desired()).is_decided
    fleet.report(replica("a"), 0)
    fleet.report(replica("b", state=VersionState.LOADING), 0)
    assert not fleet.readiness(V1, desired()).is_decided
    fleet.report(replica("b", state=VersionState.FAILED), 0)
    refused = fleet.readiness(V1, desired())
    assert refused.is_decided
    assert (refused.ready, refused.attached, refused.failed) == (1, 2, 1)
    fleet.report(replica("b"), 0)
    assert fleet.readiness(V1, desired()).is_decided


def test_version_never_changes_its_artifact():
    with pytest.raises(FailedPrecondition) as refused:
        desired().check(V1, OTHER)
    assert refused.value.reason == "DIGEST_CHANGED"
    assert not desired().check(V1, DIGEST)
