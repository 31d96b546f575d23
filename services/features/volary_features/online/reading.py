"""Reading vectors: one round trip for all rows and views, then arithmetic as offline."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from volary_kit import telemetry
from volary_kit.errors import FailedPrecondition, Unavailable
from volary_kit.telemetry import names

from volary_features.definitions import Definitions, ResolvedSet
from volary_features.domain.cells import unpacked
from volary_features.domain.instants import Instants
from volary_features.domain.plans import RequestPlan, RollingPlan, SourcedPlan
from volary_features.domain.quanta import Numbers
from volary_features.online.layout import ViewKey
from volary_features.online.states import oldest_of
from volary_features.online.store import Held, OnlineStore
from volary_features.online.waiting import Watermarks

PRESENT, DEFAULTED, STALE = 1, 2, 3  # as `ValueState`
States = npt.NDArray[np.uint8]


@dataclass(frozen=True)
class Question:
    """What is asked: keys by entity, numbers by request field, one instant a row."""

    keys: Mapping[str, Sequence[str]]
    fields: Mapping[str, Numbers]
    asked_us: Instants

    @property
    def rows(self) -> int:
        """How many vectors are asked for."""
        return len(self.asked_us)


@dataclass(frozen=True)
class Answer:
    """Vectors, where each number came from, and the lowest watermark behind them."""

    vectors: Numbers
    states: States
    watermark_us: int | None


class LastKnown:
    """Entities that were read before, for views that declare `stale`; the oldest goes first."""

    def __init__(self, capacity: int) -> None:
        self._capacity = capacity
        self._states: OrderedDict[tuple[ViewKey, str], tuple[int | None, bytes]] = OrderedDict()

    def note(self, view: ViewKey, keys: Sequence[str], held: Held) -> None:
        """Remember what was read."""
        for key, state in zip(keys, held.entities, strict=True):
            self._states[view, key] = held.watermark_us, state
            self._states.move_to_end((view, key))
        while len(self._states) > self._capacity:
            self._states.popitem(last=False)

    def recall(self, view: ViewKey, keys: Sequence[str]) -> Held | None:
        """Return what was read last; None when one of the keys was never read."""
        found = [self._states.get((view, key)) for key in keys]
        known = [each for each in found if each is not None]
        if len(known) < len(found):
            return None
        marks = [mark for mark, _ in known if mark is not None]
        return Held(min(marks, default=None), [state for _, state in known])


@dataclass(frozen=True)
class _ViewAnswer:
    values: Numbers
    watermark_us: int | None
    is_stale: bool = False


class Reading:
    """Answers `GetOnlineFeatures`."""

    def __init__(
        self,
        store: OnlineStore,
        definitions: Definitions,
        watermarks: Watermarks,
        last_known: LastKnown,
    ) -> None:
        self._store = store
        self._definitions = definitions
        self._watermarks = watermarks
        self._last_known = last_known

    async def read(
        self, resolved: ResolvedSet, question: Question, min_watermark_us: int | None, wait_s: float
    ) -> Answer:
        """Return the vectors once everything known before `min_watermark_us` is in.

        Raises FailedPrecondition `WATERMARK_NOT_REACHED` when that takes longer than `wait_s`,
        `VIEW_NOT_MATERIALISED` and `INSTANT_TOO_OLD`; Unavailable as views declare it.
        """
        plans = resolved.plan.sourced
        wanted = [
            (resolved.keys[name], question.keys[plan.spec.entity]) for name, plan in plans.items()
        ]
        held = await self._held(resolved, wanted, min_watermark_us, wait_s)
        await self._require_loaded(wanted, held or [])
        answers = {
            name: self._view_answer(plan, view, keys, found, question)
            for (name, plan), (view, keys), found in zip(
                plans.items(), wanted, held or [None] * len(wanted), strict=True
            )
        }
        return _assembled(resolved, question, answers)

    async def _held(
        self,
        resolved: ResolvedSet,
        wanted: Sequence[tuple[ViewKey, Sequence[str]]],
        min_watermark_us: int | None,
        wait_s: float,
    ) -> list[Held] | None:
        """Read, again and again until the watermark is reached; None when nothing answers."""
        waiting = self._watermarks.waiting(wait_s)
        while True:
            ticket = waiting.ticket()
            try:
                with telemetry.span("redis MGET", _described(resolved, wanted), kind="client"):
                    held = await self._store.read(wanted)
            except Unavailable:
                if min_watermark_us is not None:
                    raise  # whether it is reached cannot be said
                return None
            lowest_us = _lowest(
                found.watermark_us
                for found, plan in zip(held, resolved.plan.sourced.values(), strict=True)
                if plan.has_watermark
            )
            if min_watermark_us is None or lowest_us is None or lowest_us >= min_watermark_us:
                return held
            if not await waiting.moved_since(ticket):
                raise FailedPrecondition(
                    "WATERMARK_NOT_REACHED",
                    "not everything known before min_watermark is in yet",
                    {"watermark_us": str(lowest_us), "min_watermark_us": str(min_watermark_us)},
                )

    async def _require_loaded(
        self, wanted: Sequence[tuple[ViewKey, Sequence[str]]], held: Sequence[Held]
    ) -> None:
        """Raise FailedPrecondition for a view that holds nothing because it was never loaded.

        One that was, and is gone, is for its own policy.
        """
        empty = [
            view
            for (view, _), found in zip(wanted, held, strict=False)
            if found.watermark_us is None
        ]
        if not empty:
            return
        loaded = {live.key for live in await self._definitions.loaded_views()}
        for view in empty:
            if view not in loaded:
                raise FailedPrecondition(
                    "VIEW_NOT_MATERIALISED",
                    f"view {view.view}@{view.version} holds nothing yet: call Materialise",
                    {"feature_view": f"{view.view}@{view.version}"},
                )

    def _view_answer(
        self,
        plan: SourcedPlan,
        view: ViewKey,
        keys: Sequence[str],
        held: Held | None,
        question: Question,
    ) -> _ViewAnswer:
        policy = plan.spec.on_store_failure
        if held is not None and held.watermark_us is not None:
            if policy == "stale":
                self._last_known.note(view, keys, held)
            return _computed(plan, view, held, question)
        if policy == "default":
            nothing = np.full((question.rows, len(plan.spec.feature_names())), np.nan)
            return _ViewAnswer(nothing, None)
        recalled = self._last_known.recall(view, keys) if policy == "stale" else None
        if recalled is not None and recalled.watermark_us is not None:
            values = _values(plan, recalled, question.asked_us)
            return _ViewAnswer(values, recalled.watermark_us, is_stale=True)
        raise Unavailable(
            "FEATURES_UNAVAILABLE",
            f"the online state of view {view.view} cannot be read",
            {"feature_view": view.view},
            retry_after_s=0.5,
        )


def _described(
    resolved: ResolvedSet, wanted: Sequence[tuple[ViewKey, Sequence[str]]]
) -> telemetry.Attributes:
    return {
        names.DB_SYSTEM: "redis",
        names.DB_OPERATION: "MGET",
        names.FEATURE_SET: resolved.label,
        names.ROWS: max((len(keys) for _, keys in wanted), default=0),
    }


def _computed(plan: SourcedPlan, view: ViewKey, held: Held, question: Question) -> _ViewAnswer:
    if plan.has_watermark and question.rows:
        oldest_us = oldest_of(plan, held.watermark_us)
        if int(question.asked_us.min()) < oldest_us:
            raise FailedPrecondition(
                "INSTANT_TOO_OLD",
                f"view {view.view} answers for instants from {oldest_us} us on; ask offline",
                {"feature_view": view.view, "oldest_us": str(oldest_us)},
            )
    watermark_us = held.watermark_us if plan.has_watermark else None
    return _ViewAnswer(_values(plan, held, question.asked_us), watermark_us)


def _values(plan: SourcedPlan, held: Held, asked_us: Instants) -> Numbers:
    """Return rows x features of a view from its packed entities, one a row."""
    if len(held.entities) == 1:  # what a prediction asks for
        return _values_of_one(plan, held.entities[0], int(asked_us[0]))
    cells, bounds = unpacked(held.entities, plan.layout.dtype)
    if isinstance(plan, RollingPlan):
        return plan.values(plan.layout.totals(cells, bounds, plan.windows, asked_us))
    chosen = plan.layout.chosen(cells, bounds, asked_us)
    return plan.values(plan.layout.values(cells, chosen, asked_us, plan.spec.ttl))


def _values_of_one(plan: SourcedPlan, entity: bytes, asked_us: int) -> Numbers:
    cells = np.frombuffer(entity, dtype=plan.layout.dtype)
    if isinstance(plan, RollingPlan):
        return plan.values_of_one(cells, asked_us)
    return plan.values(plan.layout.values_of_one(cells, asked_us, plan.spec.ttl))


def _assembled(
    resolved: ResolvedSet, question: Question, answers: Mapping[str, _ViewAnswer]
) -> Answer:
    values = {name: answer.values for name, answer in answers.items()}
    for name, plan in resolved.plan.plans.items():
        if isinstance(plan, RequestPlan):
            values[name] = plan.values(question.fields, question.asked_us)
    vectors, is_present = resolved.plan.assembled(values, question.rows)
    states = np.where(is_present, PRESENT, DEFAULTED).astype(np.uint8)
    stale = {name for name, answer in answers.items() if answer.is_stale}
    if stale:
        of_stale = [name.partition(".")[0] in stale for name in resolved.plan.names]
        states[is_present & np.array(of_stale)] = STALE
    return Answer(vectors, states, _lowest(answer.watermark_us for answer in answers.values()))


def _lowest(marks: Iterable[int | None]) -> int | None:
    return min((mark for mark in marks if mark is not None), default=None)
