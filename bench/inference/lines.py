"""The lines of the bench by name, in the order of the table."""

from __future__ import annotations

from bench.inference.peers.serving import PEERS, line_of

SMALL = {
    "small_c64_vs_aio_echo": "calls/s of a small model with 64 callers, against a grpc.aio echo",
    "small_c1_p50_us": "median latency with one caller",
    "small_c64_p99_ms": "99th percentile with 64 callers",
    "small_c1_p50_vs_aio_echo": "the median as a share of the echo's in the same run",
    "small_c64_p99_vs_aio_echo": "the 99th percentile as a share of the echo's",
    "cpu_us_per_call": "CPU time of the service a call, against a committed bound",
    "events_dropped": "prediction events of these calls that found no room",
}
HEAVY = {
    "heavy_c64_vs_raw_ort": "rows/s of a large model, against onnxruntime alone",
    "overload_goodput": "what is answered in time at three times the load",
    "overload_refusal_p99_ms": "how soon the others hear that they are not",
}
MIXED_UP = {"rows_mixed_up": "replies that hold another caller's row"}
SWAPS = {
    "version_swaps_failed": "failed calls while versions are swapped under load",
    "version_swaps_wrong": "calls in the swaps that a version answered which was not in production",
}
BAD_INPUT = {
    "bad_input_worst_ms": "the slowest refusal of input that nobody can answer",
    "huge_message_ms": "the slowest refusal of a message of 66 MiB",
}
SPEED_OF_PYTHON = "python_engine_vs_aio_echo"
PYTHON = {
    SPEED_OF_PYTHON: "as the first line, for the Python engine",
    "python_bad_input_worst_ms": "the slowest refusal by the Python engine",
    "python_huge_message_ms": "the slowest refusal of 66 MiB by the Python engine",
    "rest_bad_input_worst_ms": "the slowest refusal over HTTP, the Python engine behind it",
}
OWN = SMALL | HEAVY | MIXED_UP | SWAPS | BAD_INPUT | PYTHON
PEER = {line_of(peer): f"as the first line, against {peer.title}" for peer in PEERS}
LINES = OWN | PEER
