"""`volary variant`: a registered version in smaller numbers, as a version of its own."""

from __future__ import annotations

import uuid
from enum import StrEnum
from typing import TYPE_CHECKING, Annotated

import typer

from volary_cli.commands.mesh import DataDir
from volary_cli.commands.output import AsJson, print_json, print_table, progress
from volary_cli.commands.session import Session

if TYPE_CHECKING:
    from volary.trainer.v1.trainer_service_pb2 import BuildVariantRequest, BuildVariantResponse
    from volary_client import AsyncClient


class Precision(StrEnum):
    """What a variant may compute in."""

    FP16 = "fp16"
    INT8 = "int8"


class Metric(StrEnum):
    """Which loss it is held to."""

    LOG_LOSS = "log_loss"
    BRIER = "brier"


def variant(
    model: Annotated[str, typer.Argument(help="Model id.")],
    version: Annotated[int, typer.Argument(min=1, help="The version as it was trained.")],
    precision: Annotated[Precision, typer.Option(help="The numbers that it computes in.")],
    tolerance: Annotated[
        float,
        typer.Option(
            min=0, max=1, help="Largest error of a score; 0: all limits as the training has them."
        ),
    ] = 0.0,
    margin: Annotated[float, typer.Option(min=0, help="How much worse the mean loss may be.")] = 0,
    metric: Annotated[Metric, typer.Option(help="Which loss.")] = Metric.LOG_LOSS,
    data_dir: DataDir = None,
    as_json: AsJson = False,
) -> None:
    """Build a version in smaller numbers, hold it to its gates, register it when it passes.

    Example: `volary variant flights-delay 1 --precision int8 --tolerance 0.05 --margin 0.001`.
    Exit status 5 when it did not pass: nothing is registered then.
    """
    from volary.trainer.v1.trainer_service_pb2 import BuildVariantRequest

    session = Session(data_dir)
    request = BuildVariantRequest(
        model_version=f"projects/{session.project}/models/{model}/versions/{version}",
        precision=precision.value,
        tolerance=tolerance,
        metric=metric.value,
        margin=margin,
        request_id=str(uuid.uuid4()),
    )
    answer = session.ask(lambda client: _built(client, request))
    found = answer.variant
    rows: dict[str, str | float] = {
        "version": answer.model_version,
        "digest": found.digest,
        "largest error": found.max_error,
        found.metric: found.loss,
        "as trained": found.reference_loss,
        "speed-up": found.speed_up,
    }
    if as_json:
        print_json(rows)
    else:
        print_table(("what", "is"), [(name, _shown(value)) for name, value in rows.items()])


def _shown(value: str | float) -> str:
    return value if isinstance(value, str) else f"{value:.4g}"


async def _built(client: AsyncClient, request: BuildVariantRequest) -> BuildVariantResponse:
    from volary.trainer.v1.trainer_service_pb2 import BuildVariantResponse

    progress(f"building {request.precision} of {request.model_version}")
    return await client.wait(await client.trainer.BuildVariant(request), BuildVariantResponse)
