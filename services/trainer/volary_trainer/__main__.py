"""Start the trainer: `python -m volary_trainer`."""

from __future__ import annotations

from volary_trainer.service import main

if __name__ == "__main__":
    main()
