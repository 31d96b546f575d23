from __future__ import annotations

from volary_kit.service import run

from volary_inference.service import build
from volary_inference.settings import InferenceSettings


def main() -> None:
    run("inference", InferenceSettings, build)


if __name__ == "__main__":
    main()
