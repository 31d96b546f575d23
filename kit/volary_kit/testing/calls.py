"""Calls to stand in where no server made one."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager

from volary_kit.calls import DEFAULT_PROJECT, Call, Principal, entered
from volary_kit.clock import Clock, SystemClock
from volary_kit.policies import Policy


def new_call(
    method: str = "/volary.test.v1.TestService/Act",
    *,
    project: str = DEFAULT_PROJECT,
    subject: str = "principals/tester",
    roles: frozenset[str] = frozenset({"operator"}),
    timeout_s: float = math.inf,
    idempotency: str = "request_id",
    clock: Clock | None = None,
) -> Call:
    """Return a unary call as the rules would leave it for a handler."""
    clock = clock or SystemClock()
    policy = Policy(
        method=method,
        allow=roles,
        default_deadline_s=10,
        max_deadline_s=60,
        unbounded=False,
        idempotency=idempotency,
        max_request_bytes=1 << 22,
        client_streaming=False,
        server_streaming=False,
    )
    now_s = clock.monotonic_s()
    return Call(
        method=method,
        policy=policy,
        deadline_s=now_s + timeout_s,
        started_s=now_s,
        principal=Principal(subject, project, roles),
        request_key="test-request",
        clock=clock,
    )


@contextmanager
def called(project: str = DEFAULT_PROJECT, *, timeout_s: float = math.inf) -> Iterator[Call]:
    """Make a call of a tester in `project` the current one."""
    with entered(new_call(project=project, timeout_s=timeout_s)) as call:
        yield call
