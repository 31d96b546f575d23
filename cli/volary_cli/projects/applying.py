"""Plan what a project changes and apply it; a second time there is nothing to do."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from enum import StrEnum
from pathlib import Path

from volary_client import AsyncClient
from volary_kit.errors import FailedPrecondition, NotFound, VolaryError

from volary_cli.projects.owners import OWNERS
from volary_cli.projects.reading import Declaration, read_project


class Action(StrEnum):
    """What is done with a declaration; `none` is read by a command, not kept by a service."""

    CREATE = "create"
    UPDATE = "update"
    UNCHANGED = "unchanged"
    NONE = "none"


@dataclass(frozen=True)
class Change:
    """One declaration and what is, or was, done with it; `version` is what is stored."""

    declaration: Declaration
    action: Action
    version: int = 0

    @property
    def is_needed(self) -> bool:
        return self.action in (Action.CREATE, Action.UPDATE)

    def as_dict(self) -> dict[str, object]:
        """Return the change as JSON."""
        return {
            "kind": self.declaration.kind,
            "name": self.declaration.name,
            "action": self.action.value,
            "version": self.version,
            "owner": self.declaration.owner,
        }


async def plan_project(client: AsyncClient, declarations: Sequence[Declaration]) -> list[Change]:
    """Return what would change, each change checked by the service that would make it.

    Raises the service's error for a document that it would refuse. A document that refers to
    one which the plan itself makes cannot be checked before: the services do that at apply.
    """
    changes = await asyncio.gather(*(_planned(client, each) for each in declarations))
    for change in changes:
        if change.is_needed:
            await _check(client, change, makes_more=sum(c.is_needed for c in changes) > 1)
    return list(changes)


async def apply_project(
    client: AsyncClient,
    declarations: Sequence[Declaration],
    done: Callable[[Change], None] = lambda _: None,
) -> list[Change]:
    """Apply what differs, in an order in which references resolve; `done` hears of each."""
    waiting = await plan_project(client, declarations)
    applied: list[Change] = []
    while waiting:
        refused: list[tuple[Change, VolaryError]] = []
        for change in waiting:
            try:
                applied.append(await _apply(client, change))
            except VolaryError as error:
                if not _may_come_later(error):
                    raise _about(change, error) from None
                refused.append((change, error))
            else:
                done(applied[-1])
        if len(refused) == len(waiting):
            raise _about(refused[0][0], refused[0][1])
        waiting = [change for change, _ in refused]
    return applied


async def apply_folder(client: AsyncClient, folder: Path) -> list[Change]:
    """Read a folder and apply it."""
    return await apply_project(client, read_project(folder))


async def _planned(client: AsyncClient, declaration: Declaration) -> Change:
    owner = OWNERS.get(declaration.kind)
    if owner is None:
        return Change(declaration, Action.NONE)
    stored = await owner.find(client, declaration)
    if stored is None:
        return Change(declaration, Action.CREATE)
    action = Action.UNCHANGED if stored.is_same else Action.UPDATE
    return Change(declaration, action, stored.version)


async def _check(client: AsyncClient, change: Change, *, makes_more: bool) -> None:
    try:
        await OWNERS[change.declaration.kind].check(client, change.declaration)
    except VolaryError as error:
        if not (makes_more and _may_come_later(error)):
            raise _about(change, error) from None


async def _apply(client: AsyncClient, change: Change) -> Change:
    if not change.is_needed:
        return change
    version = await OWNERS[change.declaration.kind].apply(client, change.declaration)
    return replace(change, version=version)


def _may_come_later(error: VolaryError) -> bool:
    """Say whether a document is refused for what it refers to, which the plan may yet make."""
    is_reference = isinstance(error, NotFound | FailedPrecondition)
    return is_reference or error.reason.endswith("_UNKNOWN")


def _about(change: Change, error: VolaryError) -> VolaryError:
    """Return the same error, its text preceded by the document that it is about."""
    place = f"{change.declaration.document.source}: {change.declaration}"
    details = "; ".join(f"{field}: {text}" for field, text in error.violations.items())
    error.message = f"{place}: {error.message}" + (f" ({details})" if details else "")
    return error
