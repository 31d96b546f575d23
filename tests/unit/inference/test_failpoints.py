from __future__ import annotations

import random

from volary_inference.domain.failpoints import NO_FAULT, Failpoint, Failpoints, Fault
from volary_inference.domain.predictions import VersionKey

V1, V2 = VersionKey("p", "m", 1), VersionKey("p", "m", 2)


def test_only_the_named_version_is_hit() -> None:
    failpoints = Failpoints()
    failpoints.arm(Failpoint("f", "p", "m", 2, fail_share=1.0, fail_code=14))
    assert failpoints.fault_of(V1) == NO_FAULT
    assert failpoints.fault_of(V2) == Fault(0.0, 14)
    assert failpoints.fault_of(VersionKey("other", "m", 2)) == NO_FAULT


def test_version_0_is_every_version_and_disarming_ends_it() -> None:
    failpoints = Failpoints()
    failpoints.arm(Failpoint("slow", "p", "m", slow_share=1.0, delay_s=0.2))
    failpoints.arm(Failpoint("fail", "p", "m", fail_share=1.0))
    assert failpoints.fault_of(V1) == Fault(0.2, 13)
    assert failpoints.disarm("slow") == 1
    assert failpoints.fault_of(V1) == Fault(0.0, 13)
    assert failpoints.disarm("") == 1
    assert failpoints.disarm("") == 0
    assert failpoints.fault_of(V1) == NO_FAULT


def test_the_share_holds() -> None:
    failpoints = Failpoints(random.Random(3))
    failpoints.arm(Failpoint("f", "p", "m", fail_share=0.3))
    failed = sum(failpoints.fault_of(V1).code != 0 for _ in range(10_000))
    assert 2_800 < failed < 3_200  # 4.4 standard deviations of a binomial
