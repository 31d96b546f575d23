"""Start features: `python -m volary_features`."""

from __future__ import annotations

from volary_features.service import main

if __name__ == "__main__":
    main()
