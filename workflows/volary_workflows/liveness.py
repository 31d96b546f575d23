"""How soon a lost worker is missed: every activity says each second that it still runs."""

from __future__ import annotations

from datetime import timedelta

BEAT_S = 1.0
HEARTBEAT = timedelta(seconds=4)  # of silence, four beats: then another worker takes over
