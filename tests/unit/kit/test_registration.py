"""What a process may register: nothing without a policy row."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from volary_kit.registration import ContractError, Servicer, methods_of
from volary_kit.server import Address, AioServer, ListenError, is_loopback

SERVICE = "volary.test.v1.ShapesService"


class Handler:
    def __getattr__(self, name: str) -> Any:
        return lambda *_: None


def test_every_method_is_bound_to_its_row_and_types(shapes_servicer: Any, policy_rows: Any) -> None:
    methods = methods_of([shapes_servicer(Handler())], policy_rows())
    assert {method.name.rpartition("/")[2] for method in methods} == {
        "Unary", "Up", "Down", "Both", "Missing", "Forever",
    }  # fmt: skip
    assert all(m.request_type.DESCRIPTOR.full_name == "volary.test.v1.Ask" for m in methods)


def test_an_rpc_without_a_row_stops_the_start(shapes_servicer: Any) -> None:
    with pytest.raises(ContractError, match=f"/{SERVICE}/Unary has no policy row"):
        methods_of([shapes_servicer(Handler())])


@pytest.mark.parametrize(
    ("changes", "problem"),
    [
        ({"allow": frozenset()}, "allows nobody"),
        ({"idempotency": "unspecified"}, "no idempotency"),
        ({"default_deadline_s": 0}, "deadlines"),
        ({"default_deadline_s": 20}, "deadlines"),
    ],
)
def test_a_row_that_says_too_little_stops_the_start(
    shapes_servicer: Any, policy_rows: Any, one_row: Any, changes: dict[str, Any], problem: str
) -> None:
    rows = policy_rows() | {f"/{SERVICE}/Unary": replace(one_row("Unary"), **changes)}
    with pytest.raises(ContractError, match=problem):
        methods_of([shapes_servicer(Handler())], rows)


def test_a_servicer_under_a_false_name_stops_the_start(
    shapes_servicer: Any, policy_rows: Any
) -> None:
    servicer = shapes_servicer(Handler())
    with pytest.raises(ContractError, match="was announced"):
        methods_of([Servicer(servicer.add, servicer.handler, "volary.other")], policy_rows())


@pytest.mark.parametrize(
    ("host", "expected"),
    [
        ("127.0.0.1", True),
        ("127.8.9.1", True),
        ("::1", True),
        ("localhost", True),
        ("0.0.0.0", False),
        ("::", False),
        ("10.0.0.1", False),
        ("registry.internal", False),
        ("", False),
    ],
)
def test_loopback_is_told_from_the_rest(host: str, expected: bool) -> None:
    assert is_loopback(host) is expected


def test_beyond_loopback_needs_tls() -> None:
    with pytest.raises(ListenError, match="tls_cert_file"):
        Address("0.0.0.0", 1).require_safe()


async def test_a_taken_port_is_an_error_that_names_it(start_server: Any) -> None:
    async with start_server("aio") as rig:
        taken = rig.server.address
        with pytest.raises(ListenError, match=str(taken.port)):
            await _second(rig, taken).start()


def _second(rig: Any, address: Address) -> AioServer:
    from volary_kit.clock import SystemClock
    from volary_kit.health import Health
    from volary_kit.server import Ruling

    class Nobody:
        def verify(self, token: str) -> Any:
            raise AssertionError(token)

    ruling = Ruling(Nobody(), rig.metrics, SystemClock())
    return AioServer([], ruling, Health(), address)
