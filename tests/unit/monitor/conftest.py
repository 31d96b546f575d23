from __future__ import annotations

import importlib.util
import sys
from pathlib import Path

import pytest

# the rig is a module of the tests' own folder, which is no package
spec = importlib.util.spec_from_file_location("monitor_rig", Path(__file__).with_name("rig.py"))
assert spec is not None
assert spec.loader is not None
monitor_rig = importlib.util.module_from_spec(spec)
sys.modules["monitor_rig"] = monitor_rig
spec.loader.exec_module(monitor_rig)


@pytest.fixture
async def rig(make_database, tmp_path: Path):
    return monitor_rig.Rig(await make_database("monitor"), tmp_path)
