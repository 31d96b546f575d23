from __future__ import annotations

from volary_kit.service import run

from volary_inference.rest.service import build
from volary_inference.rest.settings import RestSettings

if __name__ == "__main__":
    run("rest", RestSettings, build)
