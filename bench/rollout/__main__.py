"""`python -m bench.rollout`: what a change of traffic costs."""

from __future__ import annotations

from bench.rollout.envoy import main

if __name__ == "__main__":
    main()
