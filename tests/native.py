"""The native engine under test: where it must be there, and what is said where it is not."""

from __future__ import annotations

import os

import pytest
from volary_inference.native.module import Unavailable, load

ENGINES = ("python", "native")


def require(engine: str) -> None:
    """Skip, aloud, what needs an engine that is not built here; under CI that is a failure."""
    if engine != "native":
        return
    try:
        load()
    except Unavailable as error:
        text = f"the native engine is not tested: {error}"
        if os.environ.get("CI"):
            pytest.fail(text)
        pytest.skip(text)
