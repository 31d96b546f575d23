"""The traffic of one model: what may change it, and what it becomes.

Every accepted write raises the generation by one. A write of a rollout names the generation
that it saw last and is refused when somebody wrote since; break-glass names none.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from enum import StrEnum

from volary_kit.errors import Aborted, FailedPrecondition, InvalidArgument

from volary_gateway.domain.names import ModelName, RouteName

TOTAL = 10_000  # constant, so that a ramp only ever adds callers to the candidate

IsReady = Callable[[int], bool]


class Cause(StrEnum):
    """Why traffic is as it is."""

    SET = "set"
    STEP = "step"
    PROMOTE = "promote"
    ROLLBACK = "rollback"
    BREAK_GLASS = "break_glass"
    BRAKE = "brake"


class MissingKey(StrEnum):
    """What happens to a call without its sticky key."""

    BASELINE = "baseline"
    RANDOM = "random"
    REFUSE = "refuse"


@dataclass(frozen=True, slots=True)
class Weight:
    """A version's share in 1/10,000."""

    version: int
    weight: int


@dataclass(frozen=True, slots=True)
class Shadow:
    """A version that receives copies of a share of the calls, in 1/10,000."""

    version: int
    fraction: int


@dataclass(frozen=True, slots=True)
class Stickiness:
    """Which header keeps a caller with its version; empty: every call is drawn anew."""

    header: str = ""
    salt: str = ""
    missing_key: MissingKey = MissingKey.BASELINE


@dataclass(frozen=True, slots=True)
class Segment:
    """Callers whose header has one of some values, with a split of their own."""

    id: str
    header: str
    values: tuple[str, ...]
    weights: tuple[Weight, ...]


@dataclass(frozen=True, slots=True)
class Audience:
    """Callers that a split is for: whose header has one of some values."""

    header: str
    values: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Traffic:
    """What serves a model since `updated_us`."""

    model: ModelName
    generation: int = 0
    weights: tuple[Weight, ...] = ()
    shadow: Shadow | None = None
    stickiness: Stickiness = field(default_factory=Stickiness)
    rollout: str = ""
    step: str = ""
    cause: Cause = Cause.SET
    principal: str = ""
    reason: str = ""
    updated_us: int = 0
    production: int = 0
    previous: int = 0
    segments: tuple[Segment, ...] = ()
    audience: Audience | None = None  # None: everybody

    @property
    def route(self) -> RouteName:
        """The name under which its evidence is counted."""
        return RouteName(self.model.model, self.rollout, self.step, self.generation)

    def route_of(self, segment: Segment) -> RouteName:
        """The name under which a segment is counted: of no rollout, since nobody is drawn."""
        return RouteName(self.model.model, "", segment.id, self.generation)

    @property
    def versions(self) -> tuple[int, ...]:
        """Every version that a call or a copy may reach by the split, production included."""
        named = [w.version for weights in self._splits for w in weights]
        named += [self.shadow.version] if self.shadow else []
        named += [self.production] if self.production else []
        return tuple(dict.fromkeys(named))

    @property
    def serving(self) -> tuple[int, ...]:
        """The versions that have a share of the calls."""
        return tuple(w.version for w in self.weights if w.weight)

    @property
    def receiving(self) -> frozenset[int]:
        """The versions that receive calls or copies of them."""
        shadow = {self.shadow.version} if self.shadow else set()
        shares = {w.version for weights in self._splits for w in weights if w.weight}
        return frozenset(shadow | shares)

    @property
    def _splits(self) -> tuple[tuple[Weight, ...], ...]:
        return (self.weights, *(segment.weights for segment in self.segments))

    def weight_of(self, version: int) -> int:
        """Return a version's share, 0 when it has none."""
        return sum(w.weight for w in self.weights if w.version == version)


@dataclass(frozen=True, slots=True)
class Change:
    """A write that is asked for."""

    expected_generation: int
    weights: tuple[Weight, ...]
    shadow: Shadow | None = None
    stickiness: Stickiness = field(default_factory=Stickiness)
    rollout: str = ""
    step: str = ""
    cause: Cause = Cause.SET
    principal: str = ""
    reason: str = ""
    production: int = 0
    segments: tuple[Segment, ...] | None = None  # None: as they are
    audience: Audience | None = None


def set_traffic(current: Traffic, change: Change, is_ready: IsReady, now_us: int) -> Traffic:
    """Return the traffic after a fenced write.

    Raises InvalidArgument with the field named, Aborted `STALE_GENERATION`,
    FailedPrecondition `VERSION_NOT_READY`.
    """
    check_split(change.weights, change.shadow)
    check_segments(change.segments or ())
    if change.expected_generation != current.generation:
        raise _stale(current, change.expected_generation)
    production = change.production or current.production or change.weights[-1].version
    after = replace(
        current,
        generation=current.generation + 1,
        weights=change.weights,
        shadow=change.shadow,
        stickiness=change.stickiness,
        rollout=change.rollout,
        step=change.step,
        cause=change.cause,
        principal=change.principal,
        reason=change.reason,
        updated_us=now_us,
        segments=current.segments if change.segments is None else change.segments,
        audience=change.audience,
    )
    _require_ready(after, is_ready, production)
    return _with_production(after, production)


def roll_back(
    current: Traffic, version: int, principal: str, reason: str, is_ready: IsReady, now_us: int
) -> Traffic:
    """Return the traffic after break-glass: everything to one version, whatever the generation.

    Version 0 means the baseline during a rollout and the previous production version
    otherwise. Raises FailedPrecondition `NO_PREVIOUS_VERSION` or `VERSION_NOT_READY`.
    """
    target = version or _way_back(current)
    after = replace(
        current,
        generation=current.generation + 1,
        weights=(Weight(target, TOTAL),),
        shadow=None,
        stickiness=Stickiness(),
        rollout="",
        step="",
        cause=Cause.BREAK_GLASS,
        principal=principal,
        reason=reason,
        updated_us=now_us,
        segments=(),
        audience=None,
    )
    _require_ready(after, is_ready, target)
    return _with_production(after, target)


def brake(
    current: Traffic, version: int, weight: int, principal: str, reason: str, now_us: int
) -> Traffic:
    """Return the traffic with a candidate's share lowered and the rest given to production.

    Raises FailedPrecondition `NOT_A_CANDIDATE`, InvalidArgument when it would raise a share.
    """
    present = current.weight_of(version)
    baseline = current.production
    if version == baseline or version not in {w.version for w in current.weights}:
        raise FailedPrecondition(
            "NOT_A_CANDIDATE",
            f"version {version} is no candidate of {current.model}",
            metadata={"model": str(current.model), "version": str(version)},
        )
    if weight > present:
        raise InvalidArgument(
            "BRAKE_RAISES",
            f"the brake may only lower: version {version} has {present} of {TOTAL}",
            field="weight",
        )
    return replace(
        current,
        generation=current.generation + 1,
        weights=_lowered(current.weights, version, weight, baseline),
        segments=tuple(
            replace(each, weights=_lowered(each.weights, version, weight, baseline))
            for each in current.segments
        ),
        cause=Cause.BRAKE,
        principal=principal,
        reason=reason,
        updated_us=now_us,
    )


def check_split(weights: Sequence[Weight], shadow: Shadow | None) -> None:
    """Raise InvalidArgument for a split that does not add up or a version named twice."""
    versions = [w.version for w in weights]
    if len(set(versions)) != len(versions):
        raise InvalidArgument("VERSION_TWICE", "a version is named twice", field="weights")
    total = sum(w.weight for w in weights)
    if total != TOTAL:
        raise InvalidArgument(
            "WEIGHTS_TOTAL", f"the weights sum to {total}, not to {TOTAL}", field="weights"
        )
    if shadow is not None and any(w.version == shadow.version and w.weight for w in weights):
        raise InvalidArgument(
            "SHADOW_SERVES",
            "a version that serves cannot be its own shadow",
            field="shadow.version",
        )


def check_segments(segments: Sequence[Segment]) -> None:
    """Raise InvalidArgument for segments of one name, or a split of one that does not add up."""
    if len({segment.id for segment in segments}) != len(segments):
        raise InvalidArgument("SEGMENT_TWICE", "a segment is named twice", field="segments")
    for segment in segments:
        check_split(segment.weights, None)


def _lowered(
    weights: tuple[Weight, ...], version: int, weight: int, baseline: int
) -> tuple[Weight, ...]:
    """Return a split in which a version has at most `weight`; the rest goes to the baseline."""
    freed = sum(max(0, w.weight - weight) for w in weights if w.version == version)
    lowered = tuple(
        replace(w, weight=min(w.weight, weight) if w.version == version else w.weight)
        for w in weights
    )
    return _add(lowered, baseline, freed) if freed else lowered


def _way_back(current: Traffic) -> int:
    in_rollout = any(w.version != current.production and w.weight for w in current.weights)
    target = current.production if in_rollout or current.shadow else current.previous
    if not target:
        raise FailedPrecondition(
            "NO_PREVIOUS_VERSION",
            f"{current.model} has no version to go back to; name one",
            metadata={"model": str(current.model)},
        )
    return target


def _add(weights: tuple[Weight, ...], version: int, freed: int) -> tuple[Weight, ...]:
    if all(w.version != version for w in weights):
        return (*weights, Weight(version, freed))
    return tuple(replace(w, weight=w.weight + freed * (w.version == version)) for w in weights)


def _with_production(traffic: Traffic, production: int) -> Traffic:
    if production == traffic.production:
        return traffic
    return replace(traffic, production=production, previous=traffic.production)


def _require_ready(after: Traffic, is_ready: IsReady, production: int) -> None:
    fresh = {production} if production != after.production else set()
    for version in sorted(after.receiving | fresh):
        if not is_ready(version):
            raise FailedPrecondition(
                "VERSION_NOT_READY",
                f"no replica has version {version} of {after.model} ready",
                metadata={"model": str(after.model), "version": str(version)},
            )


def _stale(current: Traffic, expected: int) -> Aborted:
    return Aborted(
        "STALE_GENERATION",
        f"{current.model} is at generation {current.generation}, not {expected}",
        metadata={
            "model": str(current.model),
            "generation": str(current.generation),
            "expected_generation": str(expected),
            "cause": current.cause.value,
        },
    )
