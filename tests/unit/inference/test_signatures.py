from __future__ import annotations

import numpy as np
import pytest
from volary_inference.domain.signatures import Signature, TensorSpec
from volary_inference.domain.tensors import Tensor
from volary_kit.errors import InvalidArgument

SIGNATURE = Signature(
    (TensorSpec("a", "FP32", (-1, 2)), TensorSpec("b", "INT64", (-1,))),
    (TensorSpec("y", "FP32", (-1, 1)),),
)


def a(rows: int = 1, dtype: type = np.float32) -> Tensor:
    return Tensor("a", "FP32", np.zeros((rows, 2), dtype))


def b(rows: int = 1) -> Tensor:
    return Tensor("b", "INT64", np.zeros(rows, np.int64))


def test_inputs_come_in_the_order_of_the_graph() -> None:
    assert [tensor.name for tensor in SIGNATURE.check((b(), a()))] == ["a", "b"]


@pytest.mark.parametrize(
    ("inputs", "reason", "field"),
    [
        ((a(),), "INPUTS_INCOMPLETE", "inputs"),
        ((a(), b(), b()), "INPUTS_INCOMPLETE", "inputs"),
        ((a(), b(), Tensor("c", "FP32", np.zeros(1))), "INPUT_UNKNOWN", "inputs[2].name"),
        ((Tensor("a", "FP64", np.zeros((1, 2))), b()), "DATATYPE_MISMATCH", "inputs[0].datatype"),
        ((Tensor("a", "FP32", np.zeros((1, 3))), b()), "SHAPE_MISMATCH", "inputs[0].shape"),
        ((Tensor("a", "FP32", np.zeros(2)), b()), "SHAPE_MISMATCH", "inputs[0].shape"),
        ((a(2), b(3)), "BATCH_MISMATCH", "inputs"),
        ((b(), Tensor("a", "FP32", np.array([[0, np.nan]]))), "NOT_A_NUMBER", "inputs[1]"),
    ],
)
def test_inputs_that_do_not_fit_are_refused(
    inputs: tuple[Tensor, ...], reason: str, field: str
) -> None:
    with pytest.raises(InvalidArgument) as caught:
        SIGNATURE.check(inputs)
    assert caught.value.reason == reason
    assert list(caught.value.violations) == [field]


def test_an_unknown_output_is_refused_and_none_means_all() -> None:
    assert SIGNATURE.check_outputs(()) == ("y",)
    with pytest.raises(InvalidArgument) as caught:
        SIGNATURE.check_outputs(("y", "z"))
    assert list(caught.value.violations) == ["outputs[1].name"]


def test_a_fixed_first_dimension_is_not_batched() -> None:
    fixed = Signature((TensorSpec("a", "FP32", (1, 2)),), SIGNATURE.outputs)
    assert SIGNATURE.is_batched
    assert not fixed.is_batched
