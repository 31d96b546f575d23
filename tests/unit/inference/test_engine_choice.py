"""Which engine a replica runs, and what it says where that is not the one it should be."""

from __future__ import annotations

import asyncio
import subprocess
import sys
import sysconfig
import tempfile
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from volary_cli.launcher.services import engine_of, warning_of
from volary_inference.domain.events import EventRing
from volary_inference.native import composition, module
from volary_inference.native.module import NAME, WITHOUT_CARGO, NotBuilt, Unavailable
from volary_inference.settings import InferenceSettings
from volary_kit.settings import SettingsError

from tests.native import require

from . import graphs
from .peers import Keys, Peers
from .replica import Replica, raw_request

FAILED = "the build failed: exit status 101"
Choose = Callable[..., object]


def raising(error: Exception) -> Callable[[], Any]:
    def load() -> Any:
        raise error

    return load


@pytest.fixture
def choose(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Choose:
    """Choose with these settings where the module loads like that."""

    def chosen(load: Callable[[], Any], **settings: Any) -> object:
        monkeypatch.setattr(module, "load", load)
        monkeypatch.setattr(composition, "NativeEngine", lambda *_: "native")
        given = InferenceSettings(port=0, data_dir=tmp_path, **settings)
        return composition.chosen(SimpleNamespace(settings=given), EventRing(0))  # pyright: ignore[reportArgumentType]

    return chosen


def test_the_default_is_native_where_the_module_is(choose: Choose, tmp_path: Path) -> None:
    assert choose(dict) == "native"
    assert (engine_of(tmp_path), warning_of(tmp_path)) == ("native", "")
    assert choose(dict, engine="python") is None
    assert (engine_of(tmp_path), warning_of(tmp_path)) == ("python", "")


@pytest.mark.parametrize(
    "settings", [{"memory_budget_bytes": 1 << 20}, {"idle_forget_s": 5.0}, {"tensorrt": True}]
)
def test_auto_is_python_where_native_could_only_hand_over(
    choose: Choose, tmp_path: Path, settings: dict[str, Any]
) -> None:
    assert choose(raising(AssertionError("nobody asks for it")), **settings) is None
    assert warning_of(tmp_path) == ""


def test_a_machine_without_cargo_has_no_word_of_it_and_a_failed_build_has(
    choose: Choose, tmp_path: Path
) -> None:
    assert choose(raising(NotBuilt(WITHOUT_CARGO))) is None
    assert (engine_of(tmp_path), warning_of(tmp_path)) == ("python", "")
    assert choose(raising(Unavailable(FAILED))) is None
    assert (engine_of(tmp_path), warning_of(tmp_path)) == ("python", FAILED)
    with pytest.raises(SettingsError, match="exit status 101"):
        choose(raising(Unavailable(FAILED)), engine="native")


@pytest.mark.parametrize(
    ("note", "expected"),
    [(f"{WITHOUT_CARGO}: install Rust", NotBuilt), (FAILED, Unavailable), (None, NotBuilt)],
)
def test_what_the_build_left_behind_says_why_there_is_no_module(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, note: str | None, expected: type[Exception]
) -> None:
    monkeypatch.setattr(sysconfig, "get_paths", lambda: {"purelib": str(tmp_path)})
    monkeypatch.setattr(module, "NAME", f"{NAME}_that_nobody_built")
    if note is not None:
        (tmp_path / f"{NAME}_that_nobody_built.why").write_text(note)
    with pytest.raises(Unavailable) as caught:
        module.load()
    assert type(caught.value) is expected
    assert (note or "build.py") in str(caught.value)


class Misfit:
    """A module that was built for another service: its plane wants nothing of this one."""

    DataPlane = staticmethod(lambda: None)


@pytest.mark.parametrize(
    ("folder", "expected"), [("temporary", "does not fit this service"), ("t" * 100, "TMPDIR")]
)
def test_a_module_that_does_not_fit_is_a_warning_and_leaves_nothing_behind(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, folder: str, expected: str
) -> None:
    temporary = tmp_path / folder
    temporary.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(temporary))
    monkeypatch.setattr(module, "load", Misfit)
    kit: Any = SimpleNamespace(
        settings=InferenceSettings(port=0, data_dir=tmp_path / "data"),
        ruling=SimpleNamespace(max_calls=1),
        telemetry=SimpleNamespace(resource=None),
    )
    assert composition.chosen(kit, EventRing(0)) is None
    assert engine_of(tmp_path / "data") == "python"
    assert expected in warning_of(tmp_path / "data")
    assert not list(temporary.iterdir())


OPEN_ANOTHER = """
import sys, onnxruntime
onnxruntime.__file__ = sys.argv[1]
from volary_inference.native import module
try:
    module.load()
except module.Unavailable as error:
    print(error)
"""


async def test_a_runtime_that_cannot_be_opened_says_so(tmp_path: Path) -> None:
    require("native")
    (tmp_path / "capi").mkdir()
    (tmp_path / "capi" / "libonnxruntime.so.1").write_text("no library")
    command = [sys.executable, "-c", OPEN_ANOTHER, str(tmp_path / "__init__.py")]
    done = await asyncio.to_thread(
        subprocess.run, command, capture_output=True, text=True, timeout=60, check=True
    )
    assert "libonnxruntime.so.1 cannot be opened" in done.stdout


async def test_a_replica_whose_module_does_not_load_serves_and_says_why(
    tmp_path: Path, keys: Keys, peers: Peers, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / module_file()).write_bytes(b"of another machine")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path / "broken"))
    peers.gateway.want(peers.registry.add(1, graphs.sigmoid_sum(), production=True))
    replica = Replica(tmp_path, keys, peers, None, engine="auto")
    try:
        replica.start()
        await replica.ready()
        reply = await replica.v2().ModelInfer(raw_request([[0.0, 0.0, 0.0]]))
        assert reply.model_version == "1"
        assert engine_of(replica.data_dir) == "python"
        assert module_file() in warning_of(replica.data_dir)
        assert peers.gateway.reports[-1].engine == "python"
    finally:
        replica.close()


def module_file() -> str:
    return f"{NAME}.abi3.so"
