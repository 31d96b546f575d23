"""The declared demo: `demo.yaml` of an example, and the outside world beside it."""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Callable, Iterator
from datetime import datetime, timedelta
from pathlib import Path
from typing import Literal

from pydantic import Field
from volary_kit.documents import Declared, Strict, read_documents
from volary_kit.durations import DurationUs

from volary_cli.commands.exits import CommandError
from volary_cli.demo.traffic import Tick

Ticks = Callable[[datetime, datetime, timedelta], Iterator[Tick]]


class ReplaySpec(Strict):
    """How the outside world is played; slower while a version is learned on the same cores."""

    module: str
    sources: list[str]
    step: DurationUs
    in_flight: int = Field(ge=1, le=1_000)
    calls_per_s: float = Field(gt=0)
    calls_per_s_while_learning: float = Field(gt=0)


class Slice(Strict):
    """How much of the world: what is learned from at first, and where the world ends."""

    train_until: datetime
    replay_until: datetime


class RetrainSpec(Strict):
    """When the schedule starts what no alert has started, in event time."""

    alert_within: DurationUs


class FaultSpec(Strict):
    """What is done to the last version when it serves."""

    fail_share: float = Field(ge=0, le=1)
    fail_code: int = Field(ge=1, le=16)
    slow_share: float = Field(ge=0, le=1)
    delay: DurationUs


class DemoSpec(Strict):
    """The story's particulars."""

    training: str
    model: str
    feature_set: str
    replay: ReplaySpec
    slices: dict[str, Slice]
    retrain: RetrainSpec
    fault: FaultSpec


class Demo(Declared):
    """The whole document."""

    kind: Literal["Demo"]  # pyright: ignore[reportIncompatibleVariableOverride] - narrowed
    spec: DemoSpec


def read_demo(folder: Path) -> Demo:
    """Return the demo of an example's folder; raise CommandError when it has none."""
    path = folder / "demo.yaml"
    if not path.is_file():
        known = sorted(each.parent.name for each in folder.parent.glob("*/demo.yaml"))
        raise CommandError(f"there is no demo {folder.name}; there are: {', '.join(known)}")
    (document,) = read_documents(path)
    return document.check(Demo)


def load_ticks(folder: Path, module: str) -> Ticks:
    """Return the function `ticks(start, end, step)` of an example's own module."""
    path = (folder / module).resolve()
    name = f"volary_example_{folder.name}"
    spec = importlib.util.spec_from_file_location(name, path)
    if spec is None or spec.loader is None or path.parent != folder.resolve():
        raise CommandError(f"{module} is no Python file of {folder.name}")
    loaded = importlib.util.module_from_spec(spec)
    sys.modules[name] = loaded  # dataclasses look their module up
    spec.loader.exec_module(loaded)
    return loaded.ticks
