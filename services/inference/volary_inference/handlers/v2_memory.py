"""V2 requests whose tensors lie in shared memory, as the requests that they stand for."""

from __future__ import annotations

from collections.abc import MutableMapping
from dataclasses import dataclass

from inference import grpc_service_pb2 as pb
from volary_kit.errors import InvalidArgument

from volary_inference.shared_memory import Region, Regions

REGION, SIZE, OFFSET = (
    "shared_memory_region",
    "shared_memory_byte_size",
    "shared_memory_offset",
)


@dataclass(frozen=True, slots=True)
class Place:
    """Where an output goes."""

    region: Region
    offset: int
    size: int


def is_shared(request: pb.ModelInferRequest) -> bool:
    """Say whether a tensor of a request lies in shared memory."""
    return any(REGION in each.parameters for each in (*request.inputs, *request.outputs))


def taken(request: pb.ModelInferRequest, regions: Regions, project: str) -> pb.ModelInferRequest:
    """Return the request with the bytes of its shared inputs in it, in the inputs' order.

    Raises InvalidArgument, NotFound, FailedPrecondition; see `Region`.
    """
    plain = pb.ModelInferRequest()
    plain.CopyFrom(request)
    del plain.raw_input_contents[:]
    waiting = iter(request.raw_input_contents)
    for index, tensor in enumerate(plain.inputs):
        place = _place(tensor.parameters, regions, project)
        if place is not None:
            if tensor.HasField("contents"):
                raise InvalidArgument(
                    "CONTENTS_TWICE",
                    "an input has contents and a region",
                    field=f"inputs[{index}].contents",
                )
            plain.raw_input_contents.append(place.region.read(place.offset, place.size))
            continue
        raw = next(waiting, None)
        if raw is None:
            text = "inputs beside those in shared memory come in raw_input_contents"
            raise InvalidArgument("RAW_COUNT_MISMATCH", text, field="raw_input_contents")
        plain.raw_input_contents.append(raw)
    plain.raw_input_contents.extend(waiting)  # too many: the decoder counts them
    return plain


def places_of(request: pb.ModelInferRequest, regions: Regions, project: str) -> dict[str, Place]:
    """Take the places of the outputs out of a request."""
    found: dict[str, Place] = {}
    for output in request.outputs:
        place = _place(output.parameters, regions, project)
        if place is not None:
            found[output.name] = place
    return found


def put(reply: pb.ModelInferResponse, places: dict[str, Place]) -> None:
    """Move the outputs that have a place into it; the reply keeps their names and shapes."""
    raw = list(reply.raw_output_contents)
    del reply.raw_output_contents[:]
    for tensor, data in zip(reply.outputs, raw, strict=True):
        place = places.get(tensor.name)
        if place is None:
            reply.raw_output_contents.append(data)
            continue
        place.region.write(place.offset, place.size, data)
        tensor.parameters[REGION].string_param = place.region.name
        tensor.parameters[SIZE].int64_param = len(data)
        if place.offset:
            tensor.parameters[OFFSET].int64_param = place.offset


def _place(
    parameters: MutableMapping[str, pb.InferParameter], regions: Regions, project: str
) -> Place | None:
    if REGION not in parameters:
        return None
    name = parameters[REGION].string_param
    size = parameters[SIZE].int64_param if SIZE in parameters else 0
    offset = parameters[OFFSET].int64_param if OFFSET in parameters else 0
    for each in (REGION, SIZE, OFFSET):
        if each in parameters:
            del parameters[each]
    return Place(regions.region(project, name), offset, size)
