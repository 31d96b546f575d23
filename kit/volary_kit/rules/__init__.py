"""The rules of every call, each written once; `adapters` binds them to the RPC shapes.

A rule has three pure, synchronous steps: `before` the handler runs, `received` for each
request message, `after` with the outcome. A rule refuses by raising a VolaryError.
"""

from __future__ import annotations

from volary_kit.rules.chain import Outcome, Rule, Rules

__all__ = ["Outcome", "Rule", "Rules"]
