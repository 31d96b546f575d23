"""Run gateway: `python -m volary_gateway`."""

from __future__ import annotations

from volary_kit.service import run

from volary_gateway.service import build
from volary_gateway.settings import GatewaySettings


def main() -> None:
    """Run until told to stop."""
    run("gateway", GatewaySettings, build)


if __name__ == "__main__":
    main()
