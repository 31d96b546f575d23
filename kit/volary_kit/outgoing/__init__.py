"""Calls that leave this process: deadline, credential, trace and errors, written once."""

from __future__ import annotations

from volary_kit.outgoing.dress import Dressed, EdgeDress, MeshDress
from volary_kit.outgoing.retry import Retry

__all__ = ["Dressed", "EdgeDress", "MeshDress", "Retry"]
