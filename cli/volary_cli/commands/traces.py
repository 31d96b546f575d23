"""`volary trace ID`, `volary trace search`: the spans that the mesh kept."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Annotated, Any, TypeVar

import typer
from rich.markup import escape
from rich.tree import Tree

from volary_cli.commands.exits import CommandError, Exit
from volary_cli.commands.mesh import DataDir, folder_of
from volary_cli.commands.output import AsJson, console, print_json, print_table

if TYPE_CHECKING:
    from volary_cli.traces.spans import Node
    from volary_cli.traces.store import SpanStore

SEARCH = "search"
Answer = TypeVar("Answer")


def trace(
    what: Annotated[str, typer.Argument(metavar="ID|search", help="A trace id or its beginning.")],
    service: Annotated[str | None, typer.Option(help="search: a span of this service.")] = None,
    name: Annotated[str | None, typer.Option(help="search: a span with this in its name.")] = None,
    min_ms: Annotated[float, typer.Option(help="search: a span at least this long.")] = 0.0,
    limit: Annotated[int, typer.Option(help="search: at most this many.", min=1, max=1000)] = 20,
    data_dir: DataDir = None,
    as_json: AsJson = False,
) -> None:
    """Print the spans of one trace as a tree, or search for traces.

    Example: `volary trace search --service gateway --min-ms 50`, then `volary trace 4bf92f35`.
    """
    url = _store_url(data_dir)
    if what == SEARCH:
        found = _ask(
            url,
            lambda store: store.search(service=service, name=name, min_ms=min_ms, limit=limit),
        )
        _print_found([_summary(row) for row in found], as_json=as_json)
        return
    spans = _ask(url, lambda store: store.trace(what))
    if not spans:
        raise CommandError(f"no trace, or more than one, begins with {what}")
    from volary_cli.traces.spans import forest

    found = _trace_of(spans[0].trace_id, forest(spans))
    print_json(found) if as_json else print_trace_tree(found)


def _store_url(data_dir: Any) -> str:
    from volary_cli.launcher.databases import trace_store_url
    from volary_cli.launcher.settings import LauncherSettings

    folder = folder_of(data_dir)
    url = trace_store_url(folder, LauncherSettings.read())
    if url is None:
        raise CommandError(f"no mesh ran in {folder.root}: `volary up` starts one", Exit.NO_MESH)
    return url


def _ask(url: str, question: Callable[[SpanStore], Awaitable[Answer]]) -> Answer:
    import asyncpg

    from volary_cli.traces.store import opened_store

    async def asked() -> Answer:
        async with opened_store(url) as store:
            return await question(store)

    try:
        return asyncio.run(asked())
    except (OSError, asyncpg.PostgresError) as error:
        text = f"the traces cannot be read: {error}. Does the mesh run? `volary status`"
        raise CommandError(text, Exit.NO_MESH) from error


def _summary(row: Any) -> dict[str, Any]:
    return {
        "trace_id": row.trace_id,
        "service": row.service,
        "name": row.name,
        "start": datetime.fromtimestamp(row.start_ns / 1e9, UTC).isoformat(timespec="milliseconds"),
        "duration_ms": round(row.duration_ms, 3),
        "spans": row.spans,
        "errors": row.errors,
    }


def _print_found(found: list[dict[str, Any]], *, as_json: bool) -> None:
    if as_json:
        print_json({"traces": found})
    elif found:
        numbers = ("duration_ms", "spans", "errors")
        print_table(list(found[0]), [list(row.values()) for row in found], right=numbers)
    else:
        console.print("no trace fits")


def _trace_of(trace_id: str, roots: tuple[Node, ...]) -> dict[str, Any]:
    began_ns = min(root.span.start_ns for root in roots)
    return {"trace_id": trace_id, "roots": [root.as_dict(began_ns) for root in roots]}


def print_trace_tree(trace: dict[str, Any]) -> None:
    """Print a trace, in the form of `volary trace ID --json`, as a tree."""
    tree = Tree(f"[bold]trace {trace['trace_id']}[/]")
    for root in trace["roots"]:
        _grow(tree, root)
    console.print(tree)


def _grow(tree: Tree, node: dict[str, Any]) -> None:
    failed = f"  [red]{escape(node['error'])}[/]" if node["error"] else ""
    branch = tree.add(
        f"[cyan]{escape(node['service'])}[/]  {escape(node['name'])}"
        f"  [bold]{node['duration_ms']:.2f} ms[/]  [dim]+{node['offset_ms']:.2f}[/]{failed}"
    )
    for child in node["children"]:
        _grow(branch, child)
