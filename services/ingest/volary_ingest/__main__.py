"""Start ingest: `python -m volary_ingest`."""

from __future__ import annotations

from volary_ingest.service import main

if __name__ == "__main__":
    main()
