"""`volary demo NAME`: the whole loop on real data, from one command."""

from __future__ import annotations

import asyncio
import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from volary_cli.commands.exits import CommandError
from volary_cli.commands.output import AsJson, console, errors, print_json

if TYPE_CHECKING:
    from volary_cli.demo.stage import Stage

EXAMPLES = Path(__file__).parents[3] / "examples"
MARKER = "made-by-demo"


def demo(
    name: Annotated[str, typer.Argument(help="An example: a folder below examples/.")] = "flights",
    part: Annotated[
        str, typer.Option("--slice", help="How much of the data: full, or small.")
    ] = "full",
    data_dir: Annotated[
        Path | None,
        typer.Option(help="Folder of the demo's own mesh. Default: ~/.local/share/volary-demo."),
    ] = None,
    port_base: Annotated[int, typer.Option(help="First of 100 ports of its mesh.")] = 8700,
    stop: Annotated[bool, typer.Option("--stop", help="Stop the mesh at the end.")] = False,
    as_json: AsJson = False,
) -> None:
    """Tell the whole story: learn, serve, drift, retrain, canary, promote; a bad release goes back.

    It starts a mesh of its own from nothing and leaves it running, to look at. Exit status 0 only
    if every step came true.
    """
    from volary_cli.demo.stage import Stage

    root = (data_dir or Path.home() / ".local/share/volary-demo").absolute()
    stage = Stage(errors)
    _start_afresh(root, port_base, stage)
    try:
        report, addresses = asyncio.run(_told(name, part, root, stage))
    finally:
        if stop:
            _volary("down", "--data-dir", str(root))
    if as_json:
        print_json(report)
        return
    from volary_cli.commands.traces import print_trace_tree
    from volary_cli.demo.report import show

    show(console, report, addresses)
    print_trace_tree(report["trace"])


def _start_afresh(root: Path, port_base: int, stage: Stage) -> None:
    if root.exists() and any(root.iterdir()) and not (root / MARKER).exists():
        raise CommandError(f"{root} holds something else: name another folder with --data-dir")
    if root.exists():
        stage.say(f"an earlier demo in {root} is cleared away")
        _volary("down", "--data-dir", str(root))
        shutil.rmtree(root)
    root.mkdir(parents=True, mode=0o700)
    (root / MARKER).touch()
    stage.say("[bold]start the mesh[/]: engines, services, workers, Envoy")
    words = ["--data-dir", str(root), "--port-base", str(port_base)]
    _volary("up", "--detach", "--failpoints", *words)
    stage.say("the mesh is ready")


def _volary(*words: str) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "volary_cli", *words], stdout=subprocess.DEVNULL, check=False
    )
    if done.returncode != 0:
        raise CommandError(f"`volary {' '.join(words)}` failed; the reason stands above")


async def _told(
    name: str, part: str, root: Path, stage: Stage
) -> tuple[dict[str, Any], dict[str, Any]]:
    from temporalio.client import Client
    from volary_client import AsyncClient
    from volary_kit.outgoing import Retry

    from volary_cli.commands.mesh import read_status
    from volary_cli.demo.declared import load_ticks, read_demo
    from volary_cli.demo.report import gather
    from volary_cli.demo.story import Story, StoryError
    from volary_cli.demo.traffic import Replay
    from volary_cli.launcher.databases import trace_store_url
    from volary_cli.launcher.folder import MeshFolder
    from volary_cli.launcher.settings import LauncherSettings
    from volary_cli.projects.applying import apply_folder

    example = EXAMPLES / name
    declared = read_demo(example).spec
    if part not in declared.slices:
        raise CommandError(f"--slice is one of: {', '.join(declared.slices)}")
    chosen, played = declared.slices[part], declared.replay
    folder = MeshFolder(root)
    status = read_status(folder)
    ticks = load_ticks(example, played.module)
    from datetime import timedelta

    # a retry would hide a call that failed
    async with AsyncClient(status["gateway"], status["api_key"], retry=Retry(attempts=1)) as client:
        stage.say(f"[bold]declare[/] what {example.name} is: volary apply {example}")
        await apply_folder(client, example)
        world = ticks(chosen.train_until, chosen.replay_until, timedelta(microseconds=played.step))
        replay = Replay(
            client,
            declared.model,
            world,
            tuple(played.sources),
            in_flight=played.in_flight,
            calls_per_s=played.calls_per_s,
            slow_s=declared.fault.delay / 1e6,
        )
        story = Story(
            declared,
            chosen,
            client,
            await Client.connect(status["temporal"]),
            folder,
            status["components"],
            stage,
            replay,
        )
        try:
            await story.tell()
        except StoryError as error:
            raise CommandError(f"the story did not come true: {error}") from error
        stage.say("gather what came out")
        traces = trace_store_url(folder, LauncherSettings.read())
        report = await gather(story, traces or "")
    _require_true(report)
    addresses = {
        "status": f"./volary status --data-dir {root}",
        "Temporal UI": f"http://{status['temporal_ui']}",
        "gateway": status["gateway"],
        "one trace": f"./volary trace {report['trace']['trace_id']} --data-dir {root}",
        "stop": f"./volary down --data-dir {root}",
    }
    return report, addresses


def _require_true(report: dict[str, Any]) -> None:
    """Raise CommandError when something that must be true is not."""
    calls, missing = report["calls"], []
    if calls["failed_by_traffic_change"]:
        missing.append(f"{calls['failed_by_traffic_change']} calls failed by a change of traffic")
    if not calls["hurt_by_fault"]:
        missing.append("the armed fault hurt no call")
    if not report["trace"]["roots"]:
        missing.append("the trace of the last prediction did not arrive")
    if len(report["promoted"]) != 2 or len(report["rolled_back"]) != 1:
        missing.append("not two versions were promoted and one rolled back")
    if report["production"]["version"] != report["promoted"][-1]:
        missing.append("production is not the last promoted version")
    if missing:
        errors.print(json.dumps(calls))
        raise CommandError("the story did not come true: " + "; ".join(missing))
