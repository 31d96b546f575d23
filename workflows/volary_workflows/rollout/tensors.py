"""Tensors of the Open Inference Protocol, for the calls that staging makes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from inference import grpc_service_pb2 as v2
from numpy.typing import NDArray
from volary.registry.v1.model_pb2 import TensorSpec

DTYPES = {
    "BOOL": "?", "INT8": "<i1", "INT16": "<i2", "INT32": "<i4", "INT64": "<i8", "UINT8": "<u1",
    "UINT16": "<u2", "UINT32": "<u4", "UINT64": "<u8", "FP16": "<f2", "FP32": "<f4", "FP64": "<f8",
}  # fmt: skip
Array = NDArray[Any]


def request_of(
    model: str, version: int, arrays: Mapping[str, Array], specs: Sequence[TensorSpec]
) -> v2.ModelInferRequest:
    """Return a raw call of one version; every array has a specification."""
    request = v2.ModelInferRequest(model_name=model, model_version=str(version), id="staging")
    for spec in specs:
        if spec.name in arrays:
            array = np.ascontiguousarray(arrays[spec.name], DTYPES[spec.datatype])
            request.inputs.add(name=spec.name, datatype=spec.datatype, shape=array.shape)
            request.raw_input_contents.append(array.tobytes())
    return request


def outputs_of(response: v2.ModelInferResponse) -> dict[str, Array]:
    """Return the arrays of a raw reply; raise ValueError where bytes and shape disagree."""
    return {
        output.name: np.frombuffer(raw, DTYPES[output.datatype]).reshape(tuple(output.shape))
        for output, raw in zip(response.outputs, response.raw_output_contents, strict=True)
    }


def rows_of(document: Mapping[str, Any], specs: Sequence[TensorSpec]) -> dict[str, Array]:
    """Return declared rows by tensor; raise KeyError or ValueError for what does not fit."""
    known = {spec.name: spec for spec in specs}
    return {
        name: np.array(values, DTYPES[known[name].datatype]) for name, values in document.items()
    }


def zeros_of(specs: Sequence[TensorSpec]) -> dict[str, Array] | None:
    """Return one row of zeros for each tensor, None when one of them cannot be made so."""
    if any(spec.datatype not in DTYPES for spec in specs):
        return None
    return {
        spec.name: np.zeros([max(size, 1) for size in spec.shape], DTYPES[spec.datatype])
        for spec in specs
    }


def fits(array: Array, spec: TensorSpec) -> bool:
    """Say whether an array has the declared shape; -1 is any size."""
    return array.ndim == len(spec.shape) and all(
        declared in (-1, size) for declared, size in zip(spec.shape, array.shape, strict=True)
    )
