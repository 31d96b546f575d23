"""Streams, decisions and the journal of the native data plane, with no Python engine behind it."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import numpy as np
import pytest
from inference import grpc_service_pb2 as v2
from onnx import TensorProto
from volary_inference.domain.decisions import Bands
from volary_inference.lifecycle.crashes import RunJournal
from volary_kit.serving import Band

from tests.native import require

from . import graphs
from .peers import Keys
from .replica import raw_output, raw_request
from .test_native import Alone

MESSAGES = 300
BANDS = [
    {"below": 0.2, "code": "LOW", "action": "go"},
    {"below": 0.6, "code": "MIDDLE", "action": "look"},
    {"code": "HIGH", "action": "hold"},
]


@pytest.fixture(scope="module", autouse=True)
def _built() -> None:
    require("native")


@pytest.fixture
async def alone(tmp_path: Path) -> AsyncIterator[Alone]:
    alone = Alone(Keys(tmp_path))
    yield alone
    await alone.close()


def copied(number: int, model: str = "copy") -> v2.ModelInferRequest:
    request = v2.ModelInferRequest(model_name=model, id=str(number))
    request.inputs.add(name="x", datatype="INT64", shape=[1, 2])
    request.raw_input_contents.append(np.array([number, -number], np.int64).tobytes())
    return request


async def test_a_stream_is_answered_in_its_order_without_python(alone: Alone) -> None:
    alone.serve("copy", graphs.identity(TensorProto.INT64, [None, 2]))
    metadata = (("x-request-id", "k"), ("volary-route", "copy/r/s/7"))
    call = alone.stub().ModelStreamInfer(map(copied, range(MESSAGES)), metadata=metadata)
    replies = [reply async for reply in call]
    assert [reply.error_message for reply in replies] == [""] * MESSAGES
    for number, reply in enumerate(replies):
        found = reply.infer_response
        assert (found.id, found.model_version) == (str(number), "3")
        assert found.raw_output_contents[0] == copied(number).raw_input_contents[0]
        assert found.parameters["volary_prediction_id"].string_param == f"k/{number}.3.1"
        assert found.parameters["volary_route"].string_param == "copy/r/s/7"
    trailers = dict(await call.trailing_metadata())
    assert (trailers["volary-version"], trailers["volary-tier"]) == ("3", "model")
    assert alone.twins["copy"].snapshot().success.count == MESSAGES
    count, events = alone.plane.take_events(2 * MESSAGES, 5.0)
    assert (count, events.count(b"k/7.3.1")) == (MESSAGES, 2)  # the event's id and the prediction's
    [(method, codes, _, _)] = alone.plane.take_counts()
    assert (method.rpartition("/")[2], codes) == ("ModelStreamInfer", {"OK": 1})


async def test_a_message_that_fails_is_told_and_the_stream_goes_on(alone: Alone) -> None:
    alone.serve("copy", graphs.identity(TensorProto.INT64, [None, 2]))
    late = copied(2)
    late.parameters["timeout"].int64_param = 1
    wide = copied(3)
    wide.inputs[0].shape[:] = [1, 3]  # Python's to refuse, and it is not there
    requests = [copied(0), copied(1, "other"), late, wide, copied(4)]
    replies = [reply async for reply in alone.stub().ModelStreamInfer(iter(requests))]
    told = [reply.error_message.partition(":")[0] for reply in replies]
    assert told == ["", "MODEL_CHANGED", "OVERLOADED", "DRAINING", ""]
    assert [reply.infer_response.id for reply in replies] == ["0", "1", "2", "3", "4"]
    assert alone.plane.in_flight() == 0


async def test_a_score_lies_in_the_band_that_python_says(alone: Alone) -> None:
    features = [f"f{i}" for i in range(3)]
    alone.serve("m", graphs.sigmoid_sum(), serving={"features": features, "bands": BANDS})
    bands, stub, seen = (
        Bands([Band.model_validate(band) for band in BANDS], {}),
        alone.stub(),
        set(),
    )
    for row in np.random.default_rng(3).normal(size=(60, 3), scale=2).astype(np.float32):
        reply = await stub.ModelInfer(raw_request([row.tolist()]))
        decided = bands.decide(raw_output(reply)[0])
        found = reply.parameters["volary_reason_codes"].string_param
        assert (found,) == decided.reason_codes
        assert reply.parameters["volary_action"].string_param == decided.action
        seen.add(found)
    assert seen == {"LOW", "MIDDLE", "HIGH"}


CRASHING = """
import os, sys, threading
from pathlib import Path
from volary_inference.lifecycle.crashes import RunJournal
from volary_inference.native.module import load
journal = RunJournal(Path(sys.argv[1]))
journal.open()
digests = ["sha256:" + letter * 64 for letter in "ab"]
idle, running = (journal.slot(digest) for digest in digests)
native = load().NativeVersion(
    Path(sys.argv[2]).read_bytes(), [("x", "FP32", [1])], [("y", "FP32", [1])], None, 1, 0
)
native.note_in(journal.path, running.at)
run = threading.Thread(target=native.run, args=([([1], bytes(4))], 1, False), daemon=True)
run.start()
while journal.path.read_bytes()[running.at] != 1:
    pass
os.abort()
"""


def test_a_crash_accuses_what_ran_natively(tmp_path: Path) -> None:
    graph = tmp_path / "endless.onnx"
    graph.write_bytes(graphs.endless())
    command = [sys.executable, "-c", CRASHING, str(tmp_path / "journal"), str(graph)]
    subprocess.run(command, check=False, capture_output=True, timeout=120)
    assert RunJournal(tmp_path / "journal").suspects() == ["sha256:" + "b" * 64]
