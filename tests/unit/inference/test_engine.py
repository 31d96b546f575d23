from __future__ import annotations

import random
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from volary_inference.domain.batching import BatchPolicy
from volary_inference.domain.engine import PythonEngine
from volary_inference.domain.events import EventRing
from volary_inference.domain.failpoints import Failpoint, Failpoints
from volary_inference.domain.predictions import (
    About,
    Cancellation,
    InferRequest,
    ModelKey,
    Origin,
    VersionKey,
)
from volary_inference.domain.tensors import Tensor
from volary_inference.domain.versions import State, Version, Versions
from volary_inference.lifecycle.loading import Loader
from volary_inference.lifecycle.packages import Description, Package
from volary_inference.service import injected_error
from volary_kit import errors
from volary_kit.clock import SystemClock
from volary_kit.statuses import code_of

from . import graphs

CLOCK = SystemClock()
MODEL = ModelKey("p", "m")
KEY = MODEL.version(1)
ROUTE = Origin("key", attempt=3, route="m/r/s/1", is_shadow=True, trace_id="t")


class Rig:
    def __init__(self, graph: bytes) -> None:
        self.versions, self.ring, self.failpoints = Versions(), EventRing(8), Failpoints()
        loader = Loader(BatchPolicy(max_rows=8), CLOCK)
        package = Package(Description("sha256:d"), graph)
        opened = loader.open(package)
        self.serving = loader.serve(KEY, opened, loader.warm(opened, package))
        self.versions.put(Version(KEY, "sha256:d", State.READY, self.serving))
        self.engine = PythonEngine(
            self.versions,
            self.ring,
            CLOCK,
            self.failpoints,
            error_of=injected_error,
            code_of=code_of,
        )

    def ask(self, *rows: float, **more: object) -> InferRequest:
        array = np.array(rows, np.float32).reshape(-1, 1)
        name = self.serving.signature.inputs[0].name
        return InferRequest(KEY, (Tensor(name, "FP32", array),), ROUTE, **more)  # pyright: ignore[reportArgumentType]


@pytest.fixture
def make() -> Iterator[Callable[[bytes], Rig]]:
    rigs: list[Rig] = []

    def make(graph: bytes) -> Rig:
        rigs.append(Rig(graph))
        return rigs[-1]

    yield make
    for rig in rigs:
        assert rig.serving.batcher.close(10)


def soon(seconds: float = 10.0) -> float:
    return CLOCK.monotonic_s() + seconds


def test_a_reply_says_where_it_came_from_and_leaves_one_record(
    make: Callable[[bytes], Rig],
) -> None:
    rig = make(graphs.sigmoid_sum(width=1))
    about = About(subject="s", event_time_us=5, entity_keys={"e": "k"})
    reply = rig.engine.submit(rig.ask(-2.0, about=about), soon())
    expected = 1 / (1 + np.exp(2.0))
    [output] = reply.outputs
    assert (output.name, output.datatype) == ("probability", "FP32")
    assert output.array.tolist() == [[pytest.approx(expected)]]
    assert reply.provenance.prediction_id == "key.1.3"
    assert reply.provenance.confidence == pytest.approx(1 - expected)
    [record] = rig.ring.peek(10, 0)
    assert (record.id, record.tier, record.code) == ("key.1.3", "model", 0)
    assert (record.origin, record.about, record.event_time_us) == (ROUTE, about, 5)
    assert record.features == (-2.0,)
    assert record.outputs == (pytest.approx(expected),)


def test_a_failed_call_leaves_a_record_with_its_code_and_no_output(
    make: Callable[[bytes], Rig],
) -> None:
    rig = make(graphs.square_root())
    with pytest.raises(errors.Internal):
        rig.engine.submit(rig.ask(-1.0), soon())
    with pytest.raises(errors.OutOfRange):
        rig.engine.submit(rig.ask(-np.inf), soon())
    codes = [(record.code, record.tier, record.outputs) for record in rig.ring.peek(10, 0)]
    assert codes == [(13, "none", ()), (11, "none", ())]
    assert rig.serving.statistics.snapshot().failure.count == 2


def test_a_full_ring_never_fails_a_call(make: Callable[[bytes], Rig]) -> None:
    rig = make(graphs.sigmoid_sum(width=1))
    for _ in range(10):
        rig.engine.submit(rig.ask(0.0), soon())
    assert (len(rig.ring), rig.ring.dropped) == (8, 2)


def test_a_caller_that_goes_away_ends_its_call_at_once(make: Callable[[bytes], Rig]) -> None:
    rig = make(graphs.sigmoid_sum(width=1))
    rig.failpoints.arm(Failpoint("slow", "p", "m", slow_share=1.0, delay_s=60))
    cancellation = Cancellation()
    threading.Timer(0.05, cancellation.cancel).start()
    began_s = time.monotonic()
    with pytest.raises(errors.Cancelled):
        rig.engine.submit(rig.ask(0.0, cancellation=cancellation), soon(120))
    assert time.monotonic() - began_s < 30


def test_a_delay_beyond_the_deadline_is_a_deadline_and_a_failure_has_its_code(
    make: Callable[[bytes], Rig],
) -> None:
    rig = make(graphs.sigmoid_sum(width=1))
    rig.failpoints.arm(Failpoint("f", "p", "m", slow_share=1.0, delay_s=60))
    with pytest.raises(errors.DeadlineExceeded):
        rig.engine.submit(rig.ask(0.0), soon(0.05))
    rig.failpoints.arm(Failpoint("f", "p", "m", fail_share=1.0, fail_code=8))
    with pytest.raises(errors.ResourceExhausted) as caught:
        rig.engine.submit(rig.ask(0.0), soon())
    assert caught.value.reason == "FAILPOINT"


def test_interleaved_callers_each_get_their_own_rows(make: Callable[[bytes], Rig]) -> None:
    rig = make(graphs.sigmoid_sum(width=1))
    draw = random.Random(1)
    rows = [[draw.uniform(-5, 5) for _ in range(draw.randint(1, 4))] for _ in range(2_000)]

    def call(values: list[float]) -> bool:
        reply = rig.engine.submit(rig.ask(*values), soon(60))
        expected = 1 / (1 + np.exp(-np.array(values, np.float32)))
        return bool(np.allclose(reply.outputs[0].array[:, 0], expected, atol=1e-6))

    with ThreadPoolExecutor(8) as pool:
        assert all(pool.map(call, rows))


def test_the_table_chooses_and_says_what_is_missing() -> None:
    versions = Versions()
    with pytest.raises(errors.NotFound) as missing:
        versions.choose(MODEL, None)
    assert missing.value.reason == "MODEL_NOT_FOUND"
    versions.put(Version(KEY, "d"))
    with pytest.raises(errors.FailedPrecondition) as none:
        versions.choose(MODEL, None)
    assert none.value.reason == "NO_PRODUCTION_VERSION"
    versions.set_production({MODEL: 1})
    with pytest.raises(errors.Unavailable) as loading:
        versions.choose(MODEL, None)
    assert loading.value.reason == "VERSION_NOT_READY"
    with pytest.raises(errors.NotFound) as other:
        versions.choose(MODEL, 2)
    assert other.value.reason == "VERSION_NOT_FOUND"
    versions.remove(VersionKey("p", "m", 1))
    assert versions.all() == []
