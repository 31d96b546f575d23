"""Which engine a replica runs, and what it says where that is not the one it should be."""

from __future__ import annotations

import sysconfig
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
        given = InferenceSettings(port=0, data_dir=tmp_path, **{"engine": "auto", **settings})
        return composition.chosen(SimpleNamespace(settings=given), EventRing(0))  # pyright: ignore[reportArgumentType]

    return chosen


def test_auto_is_native_where_the_module_is(choose: Choose, tmp_path: Path) -> None:
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
