"""The reports of one replica's stream, whole and short."""

from __future__ import annotations

import pytest
from google.protobuf.duration_pb2 import Duration
from volary.gateway.v1 import replica_pb2, replica_service_pb2
from volary_gateway.domain.names import VersionName
from volary_gateway.handlers.replicas import Reports
from volary_kit.errors import FailedPrecondition

DIGEST = "sha256:" + "ab" * 32


def report(*versions: int, **more) -> replica_service_pb2.AttachRequest:
    return replica_service_pb2.AttachRequest(
        replica_id="r",
        address="127.0.0.1:1",
        incarnation="one",
        versions=[
            replica_pb2.LoadedVersion(
                project="default",
                model="m",
                version=version,
                digest=DIGEST,
                state=replica_pb2.VERSION_STATE_READY,
            )
            for version in versions
        ],
        **more,
    )


def short(**more) -> replica_service_pb2.AttachRequest:
    return report(versions_unchanged=True, **more)


def test_a_short_report_stands_for_the_versions_before_it_and_says_the_rest():
    reports = Reports()
    before = reports.read(report(1, 2))
    now = reports.read(short(draining=True, revision=7, queue_time=Duration(nanos=5_000)))
    assert now.versions is before.versions
    assert (now.is_draining, now.revision, now.queue_us) == (True, 7, 5)
    after = reports.read(report(2))
    assert set(after.versions) == {VersionName("default", "m", 2)}
    assert reports.read(short()).versions is after.versions


def test_a_whole_report_that_repeats_the_last_one_keeps_its_mapping():
    reports = Reports()
    before = reports.read(report(1, queue_time=Duration(nanos=1_000)))
    now = reports.read(report(1, queue_time=Duration(nanos=2_000)))
    assert now.versions is before.versions
    assert (before.queue_us, now.queue_us) == (1, 2)


def test_the_first_report_of_a_stream_says_its_versions():
    with pytest.raises(FailedPrecondition) as refused:
        Reports().read(short())
    assert refused.value.reason == "VERSIONS_UNKNOWN"
