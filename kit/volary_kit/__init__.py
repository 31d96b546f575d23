"""What all Volary services share; it knows no service by name."""

from __future__ import annotations

import os

# read once, when gRPC is first imported. A child of ours is a fork that execs at once: there is
# nothing to repair in it, and gRPC's handlers do not work while other threads are inside gRPC
os.environ.setdefault("GRPC_ENABLE_FORK_SUPPORT", "0")
