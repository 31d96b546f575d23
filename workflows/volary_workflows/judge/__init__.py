"""Decide from counts whether a candidate is worse, good enough, or not yet known.

Pure: no I/O, no clock. `inputs` holds plain dataclasses and imports no numpy, so workflow modules
may use it; `verdict.judge` and `gate.judge_gate` are the two entries.
"""
