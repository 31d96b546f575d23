"""What a person is told of the errors of the launcher and of the mesh."""

from __future__ import annotations

import errno
import sys

from volary_kit.errors import VolaryError
from volary_workflows.rollout.specification import SpecificationError

from volary_cli.commands.exits import CommandError, Exit
from volary_cli.launcher.errors import LaunchError


def explained(error: Exception) -> CommandError | None:
    """Return the one line for an expected error, None for a defect."""
    if isinstance(error, LaunchError):
        return CommandError(str(error))
    if isinstance(error, VolaryError):
        return CommandError(f"{error.reason}: {error.message}", Exit.REFUSED)
    if isinstance(error, SpecificationError):
        return CommandError(f"rollout: {error}")
    if _is_temporals(error):
        return CommandError(f"Temporal: {error}")
    if isinstance(error, OSError) and error.errno == errno.ENOSPC:
        return CommandError(f"the disk is full: {error.filename or error}")
    if isinstance(error, PermissionError | FileNotFoundError | NotADirectoryError):
        return CommandError(f"{error.strerror}: {error.filename}")
    return None


def _is_temporals(error: Exception) -> bool:
    """Say whether Temporal failed a call, without the seconds that importing its client takes."""
    service = sys.modules.get("temporalio.service")
    return service is not None and isinstance(error, service.RPCError)
