"""Spans as they are kept, and the trees that they form."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

ROOT = ""


@dataclass(frozen=True)
class Span:
    """One span; ids in hex, times in nanoseconds since the epoch, `error` its status text."""

    trace_id: str
    span_id: str
    parent_id: str
    service: str
    name: str
    kind: str
    start_ns: int
    end_ns: int
    error: str | None = None
    attributes: Mapping[str, Any] = field(default_factory=dict)

    @property
    def duration_ms(self) -> float:
        return (self.end_ns - self.start_ns) / 1e6


@dataclass(frozen=True)
class Node:
    """A span with its children, in order of their start."""

    span: Span
    children: tuple[Node, ...]

    def as_dict(self, began_ns: int) -> dict[str, Any]:
        """Return the tree as JSON; times are milliseconds after the trace began."""
        span = self.span
        return {
            "service": span.service,
            "name": span.name,
            "kind": span.kind,
            "span_id": span.span_id,
            "offset_ms": round((span.start_ns - began_ns) / 1e6, 3),
            "duration_ms": round(span.duration_ms, 3),
            "error": span.error,
            "attributes": dict(span.attributes),
            "children": [child.as_dict(began_ns) for child in self.children],
        }


def forest(spans: Iterable[Span]) -> tuple[Node, ...]:
    """Return the trees of one trace; a span whose parent is not here is a root of its own."""
    known = {span.span_id: span for span in spans}
    children: dict[str, list[Span]] = defaultdict(list)
    for span in known.values():
        is_root = span.parent_id not in known or span.parent_id == span.span_id
        children[ROOT if is_root else span.parent_id].append(span)
    return _nodes(children, ROOT)


def _nodes(children: Mapping[str, list[Span]], parent: str) -> tuple[Node, ...]:
    ordered = sorted(children.get(parent, ()), key=lambda span: (span.start_ns, span.span_id))
    return tuple(Node(span, _nodes(children, span.span_id)) for span in ordered)
