"""`./volary bench rollout [--quick] [--json]`: the lines of the judge, then those of Envoy."""

from __future__ import annotations

from bench.rollout import envoy, judge


def main() -> None:
    """Print the lines of both parts."""
    judge.main()
    envoy.main()


if __name__ == "__main__":
    main()
