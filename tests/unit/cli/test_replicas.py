from __future__ import annotations

from volary.gateway.v1 import replica_pb2
from volary_cli.commands.replicas import _told, readiness

READY, FAILED = replica_pb2.VERSION_STATE_READY, replica_pb2.VERSION_STATE_FAILED


def replica(name: str, *held: replica_pb2.LoadedVersion, attached: bool = True):
    return replica_pb2.Replica(id=name, versions=held, attached=attached)


def held(
    version: int, state: replica_pb2.VersionState.ValueType = READY, reason: str = ""
) -> replica_pb2.LoadedVersion:
    return replica_pb2.LoadedVersion(model="m", version=version, state=state, error_reason=reason)


def lines(*replicas: replica_pb2.Replica) -> list[str]:
    return [line for row in readiness(replicas) for line in _told(row)]


def test_a_version_that_is_ready_everywhere_is_one_line() -> None:
    everywhere = [replica(name, held(7)) for name in "abc"]
    assert lines(*everywhere) == ["m: version 7 ready on 3 of 3 replicas"]


def test_where_it_is_not_ready_is_said_with_the_reason() -> None:
    refused = replica("b", held(7, FAILED, "GOLDEN_MISMATCH"), held(8))
    assert lines(replica("a", held(7)), refused, replica("c")) == [
        "m: version 7 ready on 1 of 3 replicas",
        "  b: FAILED GOLDEN_MISMATCH",
        "  c: NOT THERE",
        "m: version 8 ready on 1 of 3 replicas",
        "  a: NOT THERE",
        "  c: NOT THERE",
    ]


def test_a_replica_that_is_gone_counts_nowhere() -> None:
    gone = replica("b", held(7), held(9), attached=False)
    assert lines(replica("a", held(7)), gone) == ["m: version 7 ready on 1 of 1 replicas"]
