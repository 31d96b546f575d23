"""The order of the rules and what they share."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from google.protobuf.message import Message
from google.rpc import code_pb2
from google.rpc.status_pb2 import Status

from volary_kit.calls import Call

_NAMES = {number: name for name, number in code_pb2.Code.items()}


@dataclass(slots=True)  # frozen costs more to make, and one is made a call
class Outcome:
    """How a call ended: the status that left, and the time that it took.

    `error` is the exception behind a status that is not OK, for the log and the span only.
    """

    status: Status
    elapsed_s: float
    error: BaseException | None = None

    @property
    def code(self) -> str:
        """The name of the status code, `OK` on success."""
        return _NAMES[self.status.code]


class Rule:
    """One rule; each step does nothing unless a rule says otherwise."""

    def before(self, call: Call) -> None:
        """Look at the call before any message is read; raise to refuse it."""

    def received(self, call: Call, request: Message) -> None:
        """Look at one request message; raise to refuse it."""

    def after(self, call: Call, outcome: Outcome) -> None:
        """Learn how the call ended; must not raise."""


class Rules:
    """Rules in order; `after` runs backwards over those whose `before` was entered."""

    def __init__(self, rules: Sequence[Rule]) -> None:
        """Look up once which rules have a say in which step."""
        self._before = [(place, r.before) for place, r in enumerate(rules, 1) if _has(r, "before")]
        self._received = [r.received for r in rules if _has(r, "received")]
        self._after = [(place, r.after) for place, r in enumerate(rules, 1) if _has(r, "after")]
        self._after.reverse()
        self._count = len(rules)

    def before(self, call: Call) -> None:
        """Run every `before`; the first that raises refuses the call."""
        for place, step in self._before:
            call.entered = place
            step(call)
        call.entered = self._count

    def received(self, call: Call, request: Message) -> None:
        """Run every `received` for one request message."""
        for step in self._received:
            step(call, request)

    def after(self, call: Call, outcome: Outcome) -> None:
        """Run `after` of each rule that was entered, the last one first."""
        for place, step in self._after:
            if place <= call.entered:
                step(call, outcome)


def _has(rule: Rule, step: str) -> bool:
    return getattr(type(rule), step) is not getattr(Rule, step)
