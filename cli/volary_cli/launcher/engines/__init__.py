"""Real engines as child processes: PostgreSQL, Redis, Temporal, Envoy.

An engine is what the supervisor and the tests both run: `prepare()` once, `command()` to
start, `is_ready()` to ask, `address` to hand on. `running()` does it all for one engine.
"""

from volary_cli.launcher.engines.engine import Engine, running
from volary_cli.launcher.engines.envoy import EnvoyEngine
from volary_cli.launcher.engines.postgres import PostgresEngine
from volary_cli.launcher.engines.redis import RedisEngine
from volary_cli.launcher.engines.temporal import TemporalEngine
from volary_cli.launcher.engines.time_skipping import ensure_test_server
from volary_cli.launcher.errors import EngineError
from volary_cli.launcher.loopback import free_port

__all__ = [
    "Engine",
    "EngineError",
    "EnvoyEngine",
    "PostgresEngine",
    "RedisEngine",
    "TemporalEngine",
    "ensure_test_server",
    "free_port",
    "running",
]
