from __future__ import annotations

import argparse
import sys
from functools import partial

from volary_kit.service import run

from volary_inference.service import build
from volary_inference.settings import InferenceSettings

# a batch is handed from callers' threads to its own and back: at Python's 5 ms a busy thread may
# hold each hand-over up that long; at 0.5 ms the p99 at 32 callers was half of it
SWITCH_S = 0.0005


def main() -> None:
    parser = argparse.ArgumentParser("volary-inference", description="Serve predictions.")
    parser.add_argument(
        "--failpoints", action="store_true", help="let the control port make calls slow or failing"
    )
    arguments = parser.parse_args()
    sys.setswitchinterval(SWITCH_S)
    run("inference", InferenceSettings, partial(build, with_failpoints=arguments.failpoints))


if __name__ == "__main__":
    main()
