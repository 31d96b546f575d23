"""How the online state lies in Redis.

Per view version, all under one hash tag so that a script may touch them together:

    vf:{project/view/version}:m        its watermark, decimal microseconds; absent: not loaded
    vf:{project/view/version}:e:<key>  one entity's packed cells, see `domain.cells`
    vf:{project/view/version}:x        sorted set: entity key by the last instant that it has
"""

from __future__ import annotations

from dataclasses import dataclass

WATERMARKS = "vf:watermarks"  # channel: the prefix of a view whose watermark moved


@dataclass(frozen=True, order=True)
class ViewKey:
    """One version of one view of one project."""

    project: str
    view: str
    version: int

    @property
    def prefix(self) -> str:
        """What its Redis keys begin with."""
        return f"vf:{{{self.project}/{self.view}/{self.version}}}:"

    @property
    def meta(self) -> str:
        """The key of its watermark."""
        return f"{self.prefix}m"

    @property
    def index(self) -> str:
        """The key of its sorted set of entities."""
        return f"{self.prefix}x"

    def entity(self, key: str) -> str:
        """The key of one entity's cells."""
        return f"{self.prefix}e:{key}"
