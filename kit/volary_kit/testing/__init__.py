"""What tests of every service use: a clock to turn, calls to stand in, conditions to await."""

from __future__ import annotations

from volary_kit.testing.calls import called, new_call
from volary_kit.testing.clock import ManualClock
from volary_kit.testing.conditions import eventually

__all__ = ["ManualClock", "called", "eventually", "new_call"]
