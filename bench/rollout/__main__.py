"""`./volary bench rollout [--quick] [--json]`: the lines of the judge, then those of Envoy."""

from __future__ import annotations

from importlib.util import find_spec

from bench.report import say
from bench.rollout import judge

ENVOY = "bench.rollout.envoy"


def main() -> None:
    """Print the lines of both parts."""
    judge.main()
    if find_spec(ENVOY) is None:
        say("the lines of Envoy are not measured: this checkout does not hold them")
        return
    from importlib import import_module

    import_module(ENVOY).main()


if __name__ == "__main__":
    main()
