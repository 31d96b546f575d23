"""What a version takes and gives, and whether a request fits it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

from volary_kit.errors import InvalidArgument

from volary_inference.domain.tensors import Tensor, has_nan

VARIES = -1


@dataclass(frozen=True, slots=True)
class TensorSpec:
    """One input or output; -1 is a size that varies."""

    name: str
    datatype: str
    shape: tuple[int, ...]

    def fits(self, shape: tuple[int, ...]) -> bool:
        """Say whether a shape is one of those that the spec allows."""
        return len(shape) == len(self.shape) and all(
            size in (VARIES, got) for size, got in zip(self.shape, shape, strict=True)
        )


@dataclass(frozen=True)
class Signature:
    """Inputs and outputs of a version, in the order of its graph."""

    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]

    @cached_property
    def is_batched(self) -> bool:
        """True when every tensor's first dimension varies: calls may share one run."""
        tensors = (*self.inputs, *self.outputs)
        return all(spec.shape[:1] == (VARIES,) for spec in tensors)

    def check(self, inputs: Sequence[Tensor]) -> tuple[Tensor, ...]:
        """Return the inputs in the graph's order; raise InvalidArgument if they do not fit."""
        ordered = self._ordered(inputs)
        if (
            len(ordered) > 1
            and self.is_batched
            and len({tensor.shape[0] for tensor in ordered}) > 1
        ):
            raise InvalidArgument(
                "BATCH_MISMATCH", "the inputs differ in their first dimension", field="inputs"
            )
        return ordered

    @cached_property
    def output_types(self) -> dict[str, str]:
        """The datatype of each output by its name."""
        return {spec.name: spec.datatype for spec in self.outputs}

    def _ordered(self, inputs: Sequence[Tensor]) -> tuple[Tensor, ...]:
        if len(inputs) == 1 == len(self.inputs) and inputs[0].name == self.inputs[0].name:
            _check_tensor(self.inputs[0], inputs[0], "inputs[0]")
            return (inputs[0],)
        given = {tensor.name: (index, tensor) for index, tensor in enumerate(inputs)}
        self._check_names(given, inputs)
        for spec in self.inputs:
            index, tensor = given[spec.name]
            _check_tensor(spec, tensor, f"inputs[{index}]")
        return tuple(given[spec.name][1] for spec in self.inputs)

    def check_outputs(self, names: Sequence[str]) -> tuple[str, ...]:
        """Return the outputs to give, all of them when none is named; raise InvalidArgument."""
        known = tuple(self.output_types)
        for index, name in enumerate(names):
            if name not in known:
                raise InvalidArgument(
                    "OUTPUT_UNKNOWN",
                    f"the model has no such output; it has {', '.join(known)}",
                    field=f"outputs[{index}].name",
                )
        return tuple(names) or known

    def _check_names(self, given: dict[str, tuple[int, Tensor]], inputs: Sequence[Tensor]) -> None:
        known = {spec.name for spec in self.inputs}
        for name, (index, _) in given.items():
            if name not in known:
                raise InvalidArgument(
                    "INPUT_UNKNOWN",
                    f"the model has no such input; it has {', '.join(sorted(known))}",
                    field=f"inputs[{index}].name",
                )
        missing = sorted(known - given.keys())
        if missing or len(given) != len(inputs):
            text = f"missing: {', '.join(missing)}" if missing else "one input is given twice"
            raise InvalidArgument("INPUTS_INCOMPLETE", text, field="inputs")


def _check_tensor(spec: TensorSpec, tensor: Tensor, field: str) -> None:
    if tensor.datatype != spec.datatype:
        raise InvalidArgument(
            "DATATYPE_MISMATCH",
            f"{spec.name} is {spec.datatype}, not {tensor.datatype}",
            field=f"{field}.datatype",
        )
    if not spec.fits(tensor.shape):
        raise InvalidArgument(
            "SHAPE_MISMATCH",
            f"{spec.name} has shape {list(spec.shape)}, {list(tensor.shape)} came",
            field=f"{field}.shape",
        )
    if has_nan(tensor):
        raise InvalidArgument("NOT_A_NUMBER", f"{spec.name} holds NaN", field=field)
