"""Views that were lost and loaded again: their next watermark is believed only after one more load.

When Redis is lost, so are the events in its stream that were not folded yet. They are in
ingest's tables, but a watermark that comes later would claim that they are in. So the first
watermark after a repair does not move the view; it says up to where to load it again.
"""

from __future__ import annotations

from volary_features.online.layout import ViewKey


class Settling:
    """Which views are being repaired, and up to where."""

    def __init__(self) -> None:
        self._targets: dict[ViewKey, int | None] = {}

    def begin(self, view: ViewKey) -> None:
        """Believe no watermark of a view until it is loaded up to it."""
        self._targets[view] = None

    def holds(self, view: ViewKey, watermark_us: int) -> bool:
        """Say whether a watermark has to wait; remember it as the target if so."""
        if view not in self._targets:
            return False
        self._targets[view] = max(watermark_us, self._targets[view] or watermark_us)
        return True

    def target(self, view: ViewKey) -> int | None:
        """Return up to where a view has to be loaded, None when nothing is to be done."""
        return self._targets.get(view)

    def end(self, view: ViewKey, reached_us: int) -> None:
        """A view is loaded up to an instant; done, unless a later watermark came meanwhile."""
        if (self._targets.get(view) or reached_us) <= reached_us:
            self._targets.pop(view, None)
