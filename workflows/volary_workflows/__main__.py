"""`python -m volary_workflows`: run the worker."""

from __future__ import annotations

from volary_kit.service import run

from volary_workflows.service import build
from volary_workflows.settings import WorkflowsSettings


def main() -> None:
    """Run until SIGTERM."""
    run("workflows", WorkflowsSettings, build)


if __name__ == "__main__":
    main()
