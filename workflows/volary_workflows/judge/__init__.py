"""Decide from counts whether a candidate is worse, good enough, or not yet known.

Pure: no I/O, no clock. `inputs` and `scores` hold plain dataclasses and folds and import no numpy,
so workflow modules may use them; `verdict.judge` and `gate.judge_gate` are the two entries.
"""
