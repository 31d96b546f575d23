"""`volary replicas`: which versions are ready, and on how many replicas."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, Annotated

import typer

from volary_cli.commands.mesh import DataDir
from volary_cli.commands.output import AsJson, console, print_json
from volary_cli.commands.session import Session

if TYPE_CHECKING:
    from volary.gateway.v1.replica_pb2 import Replica


def replicas(
    model: Annotated[str | None, typer.Argument(help="Model id; without one, all.")] = None,
    data_dir: DataDir = None,
    as_json: AsJson = False,
) -> None:
    """Say of each version on how many replicas it is ready, and why it is not on the others."""
    from volary.gateway.v1.replica_service_pb2 import ListReplicasRequest

    session = Session(data_dir)
    parent = f"projects/{session.project}"
    reply = session.ask(
        lambda client: client.replicas.ListReplicas(ListReplicasRequest(parent=parent))
    )
    found = [row for row in readiness(reply.replicas) if model in (None, row["model"])]
    if as_json:
        print_json({"versions": found})
        return
    if not found:
        console.print("no replica holds a version" + (f" of {model}" if model else ""))
    for row in found:
        console.print("\n".join(_told(row)), highlight=False, soft_wrap=True)


def readiness(attached: Iterable[Replica]) -> list[dict[str, object]]:
    """Return a row a version, by model and number; a replica that is gone counts nowhere."""
    present = [each for each in attached if each.attached]
    found: dict[tuple[str, int], dict[str, object]] = {}
    for key in sorted({(row.model, row.version) for each in present for row in each.versions}):
        states = dict(_states(present, *key))
        ready = sum(state == "READY" for state in states.values())
        found[key] = {
            "model": key[0],
            "version": key[1],
            "ready_replicas": ready,
            "attached_replicas": len(present),
            "elsewhere": {name: state for name, state in states.items() if state != "READY"},
        }
    return list(found.values())


def _states(present: Iterable[Replica], model: str, version: int) -> Iterator[tuple[str, str]]:
    """Yield each replica's state of one version, with the reason of a refusal."""
    from volary.gateway.v1.replica_pb2 import VersionState

    for replica in present:
        held = [r for r in replica.versions if (r.model, r.version) == (model, version)]
        if not held:
            yield replica.id, "NOT THERE"
            continue
        state = VersionState.Name(held[0].state).removeprefix("VERSION_STATE_")
        yield replica.id, f"{state} {held[0].error_reason}".strip()


def _told(row: dict[str, object]) -> Iterator[str]:
    yield (
        f"{row['model']}: version {row['version']} ready on {row['ready_replicas']} of "
        f"{row['attached_replicas']} replicas"
    )
    elsewhere = row["elsewhere"]
    if isinstance(elsewhere, dict):
        yield from (f"  {name}: {state}" for name, state in elsewhere.items())
