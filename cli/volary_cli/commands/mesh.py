"""`volary up | down | status | logs`: the mesh on this machine."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from volary_cli.commands.exits import CommandError, Exit
from volary_cli.commands.output import AsJson, console, errors, print_json, progress

if TYPE_CHECKING:
    from volary_cli.launcher.folder import MeshFolder
    from volary_cli.launcher.mesh import Options

DataDir = Annotated[
    Path | None,
    typer.Option("--data-dir", help="Folder of this mesh. Default: ~/.local/share/volary."),
]
POLL_S = 0.1
START_S = 300.0
STOP_S = 60.0
NO_STATUS: dict[str, Any] = {
    "components": [],
    "gateway": None,
    "api_key": None,
    "api_key_header": "x-api-key",
    "temporal": None,
    "temporal_ui": None,
    "postgres": None,
    "redis": None,
}


def up(
    data_dir: DataDir = None,
    port_base: Annotated[
        int | None,
        typer.Option(help="First of 100 ports; the base itself is the client address [7700]."),
    ] = None,
    replicas: Annotated[int, typer.Option(help="Inference replicas.", min=1, max=16)] = 2,
    max_replicas: Annotated[
        int,
        typer.Option(
            help="So many inference replicas at most while calls wait; 0: no more than --replicas.",
            min=0,
            max=16,
        ),
    ] = 0,
    failpoints: Annotated[
        bool, typer.Option("--failpoints", help="Let inference be broken on purpose, by RPC.")
    ] = False,
    detach: Annotated[
        bool, typer.Option("--detach", help="Return when all is ready; `volary down` stops it.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Start the mesh: engines, services, workers, Envoy. Ctrl-C stops it.

    Engines are embedded. To use existing ones set VOLARY_POSTGRES_URL, VOLARY_REDIS_URL,
    VOLARY_TEMPORAL_ADDRESS, OTEL_EXPORTER_OTLP_ENDPOINT.
    """
    from volary_cli.launcher.errors import ConfigurationError
    from volary_cli.launcher.folder import MeshFolder
    from volary_cli.launcher.mesh import Options
    from volary_cli.launcher.settings import LAST_PORT, SPAN, LauncherSettings

    settings = LauncherSettings.read()
    base = settings.port_base if port_base is None else port_base
    if not 1_024 <= base <= LAST_PORT - SPAN:
        raise ConfigurationError(f"--port-base must be between 1024 and {LAST_PORT - SPAN}")
    folder = MeshFolder(settings.mesh_folder(data_dir))
    if max_replicas and max_replicas < replicas:
        raise ConfigurationError("--max-replicas must not be below --replicas")
    settings.scaling(replicas, max(replicas, max_replicas))  # a broken key is told at once
    options = Options(folder, settings, base, replicas, failpoints, max_replicas)
    if detach:
        _start_detached(options)
        status_of(folder, as_json=as_json)
    else:
        _run_here(options)


def _run_here(options: Options) -> None:
    from volary_cli.launcher.running import MeshRun
    from volary_cli.launcher.view import MeshView

    view = MeshView(errors)
    run = MeshRun(options, view.show)
    try:
        asyncio.run(run.run())
    finally:
        view.close()


def _start_detached(options: Options) -> None:
    """Start the supervisor in a session of its own and follow it until it is ready."""
    from volary_cli.launcher.errors import MeshRunsError

    folder = options.folder
    folder.make()
    if folder.holder() is not None:
        raise MeshRunsError(f"a mesh runs in {folder.root} already")
    (folder.root / "state.json").unlink(missing_ok=True)
    words = ["--data-dir", str(folder.root), "--port-base", str(options.port_base)]
    words += ["--replicas", str(options.replicas)]
    words += ["--max-replicas", str(options.max_replicas)] if options.max_replicas else []
    words += ["--failpoints"] if options.has_failpoints else []
    with folder.turn_log("supervisor").open("ab") as log:
        process = subprocess.Popen(
            [sys.executable, "-m", "volary_cli", "up", *words],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            start_new_session=True,
        )
    try:
        _follow(folder, process)
    except KeyboardInterrupt:
        process.terminate()
        process.wait()
        raise


def _follow(folder: MeshFolder, process: subprocess.Popen[bytes]) -> None:
    """Show the state until the mesh runs; raise CommandError when it does not."""
    from volary_cli.launcher.view import MeshView

    view = MeshView(errors)
    try:
        for state in _states(folder, lambda: process.poll() is None):
            view.show(state)
            if state["phase"] == "running":
                return
    finally:
        view.close()
    state = folder.read_state() or {}
    raise CommandError(state.get("error") or f"see {folder.log('supervisor')}")


def _states(folder: MeshFolder, goes_on: Callable[[], bool]) -> Iterator[dict[str, Any]]:
    """Yield each state as it is written, as long as something goes on."""
    give_up_s, last = time.monotonic() + START_S, None
    while goes_on() and time.monotonic() < give_up_s:
        state = folder.read_state()
        if state is not None and state != last:
            last = state
            yield state
        time.sleep(POLL_S)


def down(data_dir: DataDir = None, as_json: AsJson = False) -> None:
    """Stop the mesh; its data stays."""
    from volary_cli.launcher.orphans import end_orphans

    folder = folder_of(data_dir)
    holder = folder.holder()
    if holder:
        _stop(folder, holder)
    swept = end_orphans(folder.root)
    if as_json:
        print_json({"stopped": bool(holder), "swept": swept, "data_dir": str(folder.root)})
    elif holder:
        console.print(f"the mesh in {folder.root} has stopped")
    else:
        console.print(f"no mesh runs in {folder.root}")


def _stop(folder: MeshFolder, holder: int) -> None:
    """Ask the supervisor to stop and wait for its end; kill it when it does not."""
    import psutil

    os.kill(holder, signal.SIGTERM)
    give_up_s = time.monotonic() + STOP_S
    while folder.holder() is not None or psutil.pid_exists(holder):
        if time.monotonic() > give_up_s:
            progress(f"the supervisor (pid {holder}) does not stop: killing it")
            os.kill(holder, signal.SIGKILL)
            give_up_s += STOP_S
        time.sleep(POLL_S)


def status(data_dir: DataDir = None, as_json: AsJson = False) -> None:
    """Show every component and the addresses; exit status 3: no mesh, 4: not all ready."""
    folder = folder_of(data_dir)
    status_of(folder, as_json=as_json)
    if folder.holder() is None:
        raise typer.Exit(Exit.NO_MESH)
    rows = read_status(folder)["components"]
    if not rows or any(row["health"] != "ready" for row in rows):
        raise typer.Exit(Exit.NOT_READY)


def status_of(folder: MeshFolder, *, as_json: bool) -> None:
    """Print what the mesh says of itself."""
    known = read_status(folder)
    if as_json:
        print_json(known)
        return
    if folder.holder() is None:
        console.print(f"no mesh runs in {folder.root}; `volary up` starts one")
        return
    from volary_cli.launcher.view import table

    state = folder.read_state() or {"seconds": {}}
    console.print(table({"status": known, "seconds": state["seconds"]}))
    for row in known["components"]:
        if row.get("warning"):
            console.print(f"[bold yellow]{'warning':<12}[/] {row['name']}: {row['warning']}")
    for label in ("gateway", "temporal", "temporal_ui", "postgres", "redis", "data_dir"):
        console.print(f"[bold]{label:<12}[/] {known[label]}")
    console.print(
        f"[bold]{'api key':<12}[/] {folder.api_key_file}, in header {known['api_key_header']}"
    )


def read_status(folder: MeshFolder) -> dict[str, Any]:
    """Return the object of `status --json`; without a supervisor everything is down."""
    state = folder.read_state()
    known: dict[str, Any] = state["status"] if state else NO_STATUS | {"data_dir": str(folder.root)}
    if folder.holder() is None:
        for row in known["components"]:
            row.update(pid=None, health="down")
    return known


def logs(
    name: Annotated[str | None, typer.Argument(help="Component; without one, list them.")] = None,
    follow: Annotated[bool, typer.Option("--follow", "-f", help="Go on as it grows.")] = False,
    lines: Annotated[int, typer.Option("--lines", "-n", help="Lines from the end.")] = 50,
    data_dir: DataDir = None,
    as_json: AsJson = False,
) -> None:
    """Print a component's log; with -f go on as it grows."""
    from volary_cli.launcher.folder import tail

    folder = folder_of(data_dir)
    known = sorted(path.stem for path in folder.logs.glob("*.log"))
    if name is None:
        print_json({"logs": known}) if as_json else console.print("\n".join(known))
        return
    if name not in known:
        raise CommandError(f"there is no log of {name}; there are: {', '.join(known) or 'none'}")
    log = folder.log(name)
    end = log.stat().st_size
    text = tail(log, lines)
    if as_json:
        print_json({"component": name, "file": str(log), "lines": text.splitlines()})
        return
    console.print(text, markup=False)
    if follow:
        _follow_log(log, end)


def _follow_log(log: Path, offset: int) -> None:
    while True:
        size = log.stat().st_size if log.exists() else 0
        if size < offset:  # a new file
            offset = 0
        if size > offset:
            with log.open("rb") as file:
                file.seek(offset)
                sys.stdout.write(file.read(size - offset).decode(errors="replace"))
                sys.stdout.flush()
            offset = size
        time.sleep(POLL_S)


def folder_of(data_dir: Path | None) -> MeshFolder:
    """Return the folder of the mesh that a command means."""
    from volary_cli.launcher.folder import MeshFolder
    from volary_cli.launcher.settings import LauncherSettings

    return MeshFolder(LauncherSettings.read().mesh_folder(data_dir))
