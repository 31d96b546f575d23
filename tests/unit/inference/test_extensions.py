"""What V2 has beside inference: an operator's hand, settings, tensors in shared memory."""

from __future__ import annotations

import os
import uuid
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from inference import grpc_service_pb2 as v2
from volary_inference.shared_memory import Regions, require_local
from volary_kit.errors import (
    AlreadyExists,
    FailedPrecondition,
    InvalidArgument,
    NotFound,
    PermissionDenied,
    Unavailable,
    Unimplemented,
    VolaryError,
)
from volary_kit.testing import eventually

from . import graphs
from .peers import Peers
from .replica import Replica, raw_request

ROWS = np.array([[1.0, 0.0, 0.0], [0.0, 0.0, 0.0]], np.float32)
EXPECTED = (1 / (1 + np.exp(-ROWS.sum(axis=1, keepdims=True)))).astype(np.float32)


@pytest.fixture
def segment() -> Iterator[Path]:
    """A segment under the prefix `volary_test`, 4 KiB of zeros."""
    path = Path("/dev/shm") / f"volary_test_{uuid.uuid4().hex}"
    path.write_bytes(bytes(4_096))
    yield path
    path.unlink(missing_ok=True)


# ---- regions


def test_a_region_is_read_and_written_within_its_bounds(segment: Path) -> None:
    regions = Regions("volary_test")
    regions.register("p", "r", f"/{segment.name}", 16, 64)
    region = regions.region("p", "r")
    region.write(8, 8, b"12345678")
    assert region.read(8, 4) == b"1234"
    assert segment.read_bytes()[24:32] == b"12345678"
    for offset, size in ((-1, 4), (0, 65), (64, 1), (1 << 62, 1 << 62)):
        with pytest.raises(InvalidArgument, match="64 bytes"):
            region.read(offset, size)
    with pytest.raises(InvalidArgument, match="room for 4"):
        region.write(0, 4, b"12345678")
    regions.close()


def test_a_segment_that_its_owner_cuts_short_is_an_error_and_nothing_worse(segment: Path) -> None:
    regions = Regions("volary_test")
    regions.register("p", "r", segment.name, 0, 4_096)
    os.truncate(segment, 10)
    with pytest.raises(FailedPrecondition, match="shrunk"):
        regions.region("p", "r").read(0, 4_096)
    with pytest.raises(FailedPrecondition, match="shrunk"):
        regions.region("p", "r").write(0, 64, bytes(64))
    regions.close()


def test_what_is_not_ours_is_refused_in_words_that_do_not_say_what_is_there(
    segment: Path, tmp_path: Path
) -> None:
    folder = segment.parent
    link = folder / f"volary_test_link_{uuid.uuid4().hex}"
    link.symlink_to("/etc/passwd")
    foreign = folder / f"foreign_{uuid.uuid4().hex}"
    foreign.write_bytes(bytes(64))
    bad = {
        link.name: 8,
        foreign.name: 8,
        "volary_test_absent": 8,
        "volary_test/../x": 8,
        "/../etc/passwd": 8,
        "": 8,
        segment.name: 4_097,
    }
    said = set()
    try:
        for key, size in bad.items():
            with pytest.raises(InvalidArgument) as caught:
                Regions("volary_test").register("p", "r", key, 0, size)
            said.add((caught.value.reason, caught.value.message))
    finally:
        link.unlink()
        foreign.unlink()
    assert said == {("REGION_REFUSED", "the segment cannot be registered here")}


def test_regions_belong_to_a_project_and_to_one_name(segment: Path) -> None:
    regions = Regions("volary_test")
    regions.register("p", "r", segment.name, 0, 8)
    with pytest.raises(AlreadyExists):
        regions.register("p", "r", segment.name, 0, 8)
    with pytest.raises(NotFound):
        regions.region("other", "r")
    regions.unregister("other", "")
    assert [region.name for region in regions.of("p", "")] == ["r"]
    regions.unregister("p", "r")
    assert regions.of("p", "") == []


@pytest.mark.parametrize("peer", ["ipv4:10.0.0.7:4000", "ipv6:[2001:db8::1]:4000", ""])
def test_only_callers_on_the_machine_may_ask(peer: str) -> None:
    require_local("ipv4:127.0.0.1:4000")
    with pytest.raises(PermissionDenied):
        require_local(peer)


# ---- on the wire


def shared_request(size: int = 24) -> v2.ModelInferRequest:
    request = v2.ModelInferRequest(model_name="m")
    tensor = request.inputs.add(name="features", datatype="FP32", shape=[2, 3])
    tensor.parameters["shared_memory_region"].string_param = "in"
    tensor.parameters["shared_memory_byte_size"].int64_param = size
    output = request.outputs.add(name="probability")
    output.parameters["shared_memory_region"].string_param = "in"
    output.parameters["shared_memory_byte_size"].int64_param = 8
    output.parameters["shared_memory_offset"].int64_param = 64
    return request


def fill(segment: Path) -> None:
    segment.write_bytes(ROWS.tobytes().ljust(4_096, b"\0"))


def content(segment: Path) -> bytes:
    return segment.read_bytes()


async def refusal(call) -> VolaryError:
    with pytest.raises(VolaryError) as caught:
        await call
    return caught.value


async def test_tensors_go_through_shared_memory_where_it_is_on(
    peers: Peers, replica: Replica, segment: Path
) -> None:
    fill(segment)
    peers.gateway.want(peers.registry.add(1, graphs.sigmoid_sum(), production=True))
    replica.start(VOLARY_INFERENCE_SHARED_MEMORY_PREFIX="volary_test")
    await replica.ready()
    stub = replica.v2()
    assert (
        "system_shared_memory" in (await stub.ServerMetadata(v2.ServerMetadataRequest())).extensions
    )
    assert (await refusal(stub.ModelInfer(shared_request()))).reason == "REGION_NOT_FOUND"
    await stub.SystemSharedMemoryRegister(
        v2.SystemSharedMemoryRegisterRequest(name="in", key=segment.name, byte_size=4_096)
    )
    status = await stub.SystemSharedMemoryStatus(v2.SystemSharedMemoryStatusRequest())
    assert status.regions["in"].byte_size == 4_096
    reply = await stub.ModelInfer(shared_request())
    assert list(reply.raw_output_contents) == []
    assert reply.outputs[0].parameters["shared_memory_offset"].int64_param == 64
    np.testing.assert_allclose(
        np.frombuffer(content(segment)[64:72], np.float32), EXPECTED.ravel(), atol=1e-6
    )
    assert (await refusal(stub.ModelInfer(shared_request(20)))).reason == "RAW_SIZE_MISMATCH"
    other = replica.v2(replica.keys.api_key(project="other"))
    listed = await other.SystemSharedMemoryStatus(v2.SystemSharedMemoryStatusRequest())
    assert not listed.regions
    behind = (("x-forwarded-for", "10.0.0.9"),)  # a proxy here speaks for somebody elsewhere
    assert (await refusal(stub.ModelInfer(shared_request(), metadata=behind))).reason == "NOT_LOCAL"
    await stub.SystemSharedMemoryUnregister(v2.SystemSharedMemoryUnregisterRequest(name="in"))
    assert (await refusal(stub.ModelInfer(shared_request()))).reason == "REGION_NOT_FOUND"


async def test_an_operator_unloads_a_model_here_and_loads_it_again(
    peers: Peers, replica: Replica
) -> None:
    peers.gateway.want(peers.registry.add(1, graphs.sigmoid_sum(), production=True))
    replica.start()
    await replica.ready()
    stub = replica.v2(replica.keys.api_key("operator"))

    async def failed() -> bool:
        return peers.gateway.state_of(1) == "FAILED"

    unload, load = v2.RepositoryModelUnloadRequest, v2.RepositoryModelLoadRequest
    denied = await refusal(replica.v2().RepositoryModelUnload(unload(model_name="m")))
    assert isinstance(denied, PermissionDenied)
    await stub.RepositoryModelUnload(unload(model_name="m"))
    assert isinstance(await refusal(stub.ModelInfer(raw_request([[0, 0, 0]]))), Unavailable)
    await eventually(failed, what="the report to gateway")
    (row,) = peers.gateway.reports[-1].versions
    assert row.error_reason == "UNLOADED"
    await stub.RepositoryModelLoad(load(model_name="m"))
    assert (await stub.ModelInfer(raw_request([[0, 0, 0]]))).model_version == "1"
    assert isinstance(await refusal(stub.RepositoryModelLoad(load(model_name="x"))), NotFound)
    forged = load(model_name="m")
    forged.parameters["file:1/model.onnx"].bytes_param = b"x"
    assert (await refusal(stub.RepositoryModelLoad(forged))).reason == "PARAMETER_UNKNOWN"

    levels = await stub.LogSettings(v2.LogSettingsRequest())
    assert levels.settings["log_info"].bool_param
    quiet = v2.LogSettingsRequest()
    quiet.settings["log_info"].bool_param = False
    changed = await stub.LogSettings(quiet)
    assert not changed.settings["log_info"].bool_param
    assert changed.settings["log_warning"].bool_param
    elsewhere = v2.LogSettingsRequest()
    elsewhere.settings["log_file"].string_param = "/tmp/x"
    assert (await refusal(stub.LogSettings(elsewhere))).reason == "SETTING_FIXED"

    traced = await stub.TraceSetting(v2.TraceSettingRequest())
    assert list(traced.settings["trace_level"].value) == ["OFF"]
    other = v2.TraceSettingRequest()
    other.settings["trace_rate"].value.append("7")
    assert (await refusal(stub.TraceSetting(other))).reason == "SETTING_FIXED"
    other = v2.TraceSettingRequest()
    other.settings["trace_file"].value.append("/etc/x")
    assert (await refusal(stub.TraceSetting(other))).reason == "SETTING_UNKNOWN"

    off = await refusal(replica.v2().SystemSharedMemoryStatus(v2.SystemSharedMemoryStatusRequest()))
    cuda = await refusal(replica.v2().CudaSharedMemoryStatus(v2.CudaSharedMemoryStatusRequest()))
    assert (off.reason, cuda.reason) == ("SHARED_MEMORY_OFF", "NO_GPU")
    assert isinstance(off, Unimplemented)
