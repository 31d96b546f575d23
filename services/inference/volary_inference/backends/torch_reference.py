"""The trainer's network in torch, from its weights alone: what graphs are held against.

It serves no call and is no dependency: parity tests import it where torch is installed. Weights
are plain arrays (safetensors: a JSON header and bytes); nothing of a file is ever executed, and no
network but the trainer's perceptron can be told by it.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping
from itertools import pairwise

import numpy as np
from volary_kit.errors import InvalidArgument

from volary_inference.domain.signatures import VARIES, Signature, TensorSpec

BACKEND, PLATFORM = "torch-reference", "torch"
LAYER = re.compile(r"layers\.(\d{1,3})\.(weight|bias)")
LENGTH_BYTES = 8
CLAMP = 8.0  # scaled features beyond it are taken for 8 deviations


class TorchReference:
    """`features` [N, D] -> `probability` [N, 1], as torch computes it."""

    backend, platform = BACKEND, PLATFORM

    def __init__(self, weights: bytes) -> None:
        """Build the network; raise InvalidArgument `WEIGHTS_REFUSED`."""
        import torch

        arrays = arrays_of(weights)
        layers = _layers(arrays)
        width, last = layers[0][0].shape[1], layers[-1][0].shape[0]
        if arrays["mean"].shape != (width,) or arrays["scale"].shape != (width,) or last != 1:
            raise _refused("its scaling or its output is not the network's")
        self._torch = torch
        self._mean, self._scale = (torch.from_numpy(arrays[name]) for name in ("mean", "scale"))
        self._layers = [(torch.from_numpy(w), torch.from_numpy(b)) for w, b in layers]
        self.signature = Signature(
            (TensorSpec("features", "FP32", (VARIES, width)),),
            (TensorSpec("probability", "FP32", (VARIES, 1)),),
        )

    def run(self, feeds: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Return the probability of each row."""
        torch = self._torch
        with torch.inference_mode():
            rows = torch.from_numpy(np.ascontiguousarray(feeds["features"], np.float32))
            rows = torch.clamp((rows - self._mean) / self._scale, -CLAMP, CLAMP)
            for weight, bias in self._layers[:-1]:
                rows = torch.relu(torch.nn.functional.linear(rows, weight, bias))
            rows = torch.nn.functional.linear(rows, *self._layers[-1])
            return {"probability": torch.sigmoid(rows).numpy()}


def arrays_of(data: bytes) -> dict[str, np.ndarray]:
    """Return the arrays of a safetensors file; raise InvalidArgument `WEIGHTS_REFUSED`.

    FP32 alone, each within the file and of the length of its shape, all finite.
    """
    length = int.from_bytes(data[:LENGTH_BYTES], "little")
    start = LENGTH_BYTES + length
    if len(data) < LENGTH_BYTES or start > len(data):
        raise _refused("it has no header")
    try:
        header = json.loads(data[LENGTH_BYTES:start])
        rows = {
            str(name): (row["dtype"], tuple(map(int, row["shape"])), *map(int, row["data_offsets"]))
            for name, row in header.items()
            if name != "__metadata__"
        }
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        raise _refused("its header is malformed") from None
    return {name: _array(data[start:], *row) for name, row in rows.items()}


def _array(data: bytes, kind: str, shape: tuple[int, ...], begin: int, end: int) -> np.ndarray:
    if kind != "F32" or any(size < 1 for size in shape):
        raise _refused("a tensor is not of 32-bit floats")
    if not 0 <= begin <= end <= len(data) or end - begin != 4 * math.prod(shape):
        raise _refused("a tensor's shape is not that of its bytes")
    array = np.frombuffer(data[begin:end], np.dtype("<f4")).reshape(shape).copy()
    if not np.isfinite(array).all():
        raise _refused("a weight is not a number")
    return array


def _layers(arrays: Mapping[str, np.ndarray]) -> list[tuple[np.ndarray, np.ndarray]]:
    """Return weight and bias of each linear layer, in order."""
    places: set[int] = set()
    for name in arrays.keys() - {"mean", "scale"}:
        found = LAYER.fullmatch(name)
        if found is None:
            raise _refused(f"{name[:64]!r} is no part of the network")
        places.add(int(found[1]))
    names = {"mean", "scale"} | {
        f"layers.{i}.{kind}" for i in places for kind in ("weight", "bias")
    }
    if not places or names != arrays.keys():
        raise _refused("a part of the network is missing")
    layers = [(arrays[f"layers.{i}.weight"], arrays[f"layers.{i}.bias"]) for i in sorted(places)]
    if any(w.ndim != 2 or b.shape != w.shape[:1] for w, b in layers) or any(
        one[0].shape[0] != other[0].shape[1] for one, other in pairwise(layers)
    ):
        raise _refused("its layers do not fit together")
    return layers


def _refused(text: str) -> InvalidArgument:
    return InvalidArgument("WEIGHTS_REFUSED", f"the weights are refused: {text}")
