"""`python -m volary_monitor`."""

from __future__ import annotations

from volary_monitor.service import main

if __name__ == "__main__":
    main()
