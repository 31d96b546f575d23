"""Volary trainer: train a model from one file, repeatably."""

import os

# onnxruntime's wheel reports to its vendor, from a thread of its own, unless it is told before it
# is imported
os.environ["ORT_DISABLE_TELEMETRY"] = "1"
