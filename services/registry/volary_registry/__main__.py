"""Start the registry: `python -m volary_registry`."""

from __future__ import annotations

from volary_registry.service import main

if __name__ == "__main__":
    main()
