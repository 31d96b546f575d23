"""Of the replicas that drain the last one stays until somebody else answers."""

from __future__ import annotations

from volary_gateway.domain.fleet import (
    CERTAIN_US,
    HANDOVER_US,
    Desired,
    Farewell,
    Fleet,
    Held,
    Replica,
    VersionState,
)
from volary_gateway.domain.names import VersionName

V1, V2 = VersionName("default", "flights", 1), VersionName("default", "flights", 2)
DIGEST = "sha256:" + "a" * 64
WANTED = Desired(1, {V1: DIGEST, V2: DIGEST})


def replica(name: str, *versions: VersionName, drains: bool = False, life: str = "one") -> Replica:
    held = {version: Held(DIGEST, VersionState.READY) for version in versions}
    return Replica(name, f"127.0.0.1:{ord(name)}", life, held, is_draining=drains)


def at(fleet: Fleet) -> dict[VersionName, int]:
    return {version: len(found) for version, found in fleet.endpoints(WANTED).items()}


def parted(fleet: Fleet, now_us: int) -> bool:
    return fleet.part(WANTED, [V1], now_us)


def test_who_leaves_others_behind_goes_once_that_is_certain():
    fleet = Fleet()
    fleet.report(replica("a", V1), 0)
    fleet.report(replica("b", V1, drains=True), 0)
    assert parted(fleet, 0)
    assert (fleet.farewell("b"), at(fleet)) == (Farewell.STAY, {V1: 2})
    assert not parted(fleet, CERTAIN_US - 1)
    assert parted(fleet, CERTAIN_US)
    assert (fleet.farewell("b"), at(fleet)) == (Farewell.GO, {V1: 1})
    assert fleet.farewell("a") is Farewell.NONE


def test_the_last_one_stays_until_envoy_has_found_another_one():
    fleet = Fleet()
    fleet.report(replica("a", V1), 0)
    fleet.report(replica("b", V1, drains=True), 0)
    parted(fleet, 0)
    fleet.silent("a", "one")  # its stream broke: it may be dead
    parted(fleet, 9 * CERTAIN_US)
    assert (fleet.farewell("b"), at(fleet)) == (Farewell.STAY, {V1: 2})
    back_us = 20 * CERTAIN_US
    parted(fleet, back_us)
    fleet.report(replica("a", V1, life="two"), back_us + 1)
    assert not parted(fleet, back_us + HANDOVER_US - 1)
    assert fleet.addresses() == ("127.0.0.1:97", "127.0.0.1:98")
    assert parted(fleet, back_us + HANDOVER_US)
    assert (fleet.farewell("b"), fleet.addresses()) == (Farewell.GO, ("127.0.0.1:97",))


def test_of_those_that_drain_together_one_stays():
    fleet = Fleet()
    for name in ("b", "a", "c"):
        fleet.report(replica(name, V1, drains=True), 0)
    parted(fleet, 0)
    parted(fleet, 9 * CERTAIN_US)
    assert [fleet.farewell(name) for name in "abc"] == [Farewell.STAY, Farewell.GO, Farewell.GO]
    assert at(fleet) == {V1: 1}


def test_nobody_stays_for_a_version_without_traffic():
    fleet = Fleet()
    fleet.report(replica("a", V1), 0)
    fleet.report(replica("b", V2, drains=True), 0)
    assert parted(fleet, 0)
    assert (fleet.farewell("b"), at(fleet)) == (Farewell.GO, {V1: 1})


def test_who_was_let_go_is_not_asked_back_and_a_new_life_is_not_gone():
    fleet = Fleet()
    fleet.report(replica("a", V1), 0)
    fleet.report(replica("b", V1, drains=True), 0)
    parted(fleet, 0)
    parted(fleet, CERTAIN_US)
    fleet.silent("a", "one")
    assert not parted(fleet, 2 * CERTAIN_US)
    assert fleet.farewell("b") is Farewell.GO
    fleet.report(replica("b", V1, life="two"), 3 * CERTAIN_US)
    assert parted(fleet, 3 * CERTAIN_US)
    assert (fleet.farewell("b"), at(fleet)) == (Farewell.NONE, {V1: 2})


def test_a_stream_that_is_not_the_replicas_own_any_more_says_nothing():
    fleet = Fleet()
    fleet.report(replica("a", V1, life="two"), 0)
    fleet.report(replica("b", V1, drains=True), 0)
    fleet.silent("a", "one")
    parted(fleet, 0)
    parted(fleet, CERTAIN_US)
    assert fleet.farewell("b") is Farewell.GO
