"""The order of the rules and what they share."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from google.protobuf.message import Message
from google.rpc import code_pb2
from google.rpc.status_pb2 import Status

from volary_kit.calls import Call


@dataclass(frozen=True, slots=True)
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
        return code_pb2.Code.Name(self.status.code)


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
        self._rules = tuple(rules)
        self._on_message = tuple(r for r in rules if type(r).received is not Rule.received)

    def before(self, call: Call) -> None:
        """Run every `before`; the first that raises refuses the call."""
        for rule in self._rules:
            call.entered += 1
            rule.before(call)

    def received(self, call: Call, request: Message) -> None:
        """Run every `received` for one request message."""
        for rule in self._on_message:
            rule.received(call, request)

    def after(self, call: Call, outcome: Outcome) -> None:
        """Run `after` of each rule that was entered, the last one first."""
        for rule in reversed(self._rules[: call.entered]):
            rule.after(call, outcome)
