"""The audit chain: each entry is hashed with the hash of the one before, so none can be altered."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable
from dataclasses import astuple, dataclass

GENESIS = "0" * 64


@dataclass(frozen=True)
class Fact:
    """What was done to what, by whom, when (UTC microseconds), by which request."""

    action: str
    resource: str
    principal: str
    time_us: int
    request_hash: str


@dataclass(frozen=True)
class Link:
    """A fact in its place of the chain; `sequence` counts from 1."""

    sequence: int
    fact: Fact
    previous_hash: str
    hash: str


def link(fact: Fact, last: Link | None) -> Link:
    """Return the next link after `last`."""
    sequence = 1 if last is None else last.sequence + 1
    previous = GENESIS if last is None else last.hash
    return Link(sequence, fact, previous, _hash(sequence, fact, previous))


def first_bad(links: Iterable[Link]) -> tuple[int, Link | None]:
    """Walk a chain in order; return how many links hold and the first that does not."""
    checked, last = 0, None
    for found in links:
        if found != link(found.fact, last):
            return checked, found
        checked, last = checked + 1, found
    return checked, None


def _hash(sequence: int, fact: Fact, previous: str) -> str:
    text = json.dumps([sequence, *astuple(fact), previous], separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()
