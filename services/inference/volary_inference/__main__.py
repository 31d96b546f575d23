from __future__ import annotations

import argparse
from functools import partial

from volary_kit.service import run

from volary_inference.service import build
from volary_inference.settings import InferenceSettings


def main() -> None:
    parser = argparse.ArgumentParser("volary-inference", description="Serve predictions.")
    parser.add_argument(
        "--failpoints", action="store_true", help="let the control port make calls slow or failing"
    )
    arguments = parser.parse_args()
    run("inference", InferenceSettings, partial(build, with_failpoints=arguments.failpoints))


if __name__ == "__main__":
    main()
