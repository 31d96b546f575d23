"""The public client against a real server: retries, and what they never do."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import pytest
from google.protobuf import descriptor_pool, message_factory
from volary_kit.client import connect, connect_aio
from volary_kit.errors import NotFound, Unavailable
from volary_kit.outgoing import Retry

UNARY = "/volary.test.v1.ShapesService/Unary"
QUICK = Retry(attempts=3, first_s=0.001, longest_s=0.001)


def types() -> tuple[Any, Any]:
    method: Any = descriptor_pool.Default().FindMethodByName(UNARY[1:].replace("/", "."))
    found = message_factory.GetMessageClass
    return found(method.input_type), found(method.output_type)


async def ask_aio(address: str, credential: str, text: str, retry: Retry) -> Any:
    ask, answer = types()
    async with connect_aio(address, credential, retry=retry) as channel:
        call: Any = channel.unary_unary(UNARY, ask.SerializeToString, answer.FromString)
        return await call(ask(text=text))


async def ask_blocking(address: str, credential: str, text: str, retry: Retry) -> Any:
    ask, answer = types()

    def run() -> Any:
        with connect(address, credential, retry=retry) as channel:
            call: Any = channel.unary_unary(UNARY, ask.SerializeToString, answer.FromString)
            return call(ask(text=text))

    return await asyncio.to_thread(run)


@pytest.fixture(params=[ask_aio, ask_blocking], ids=["aio", "blocking"])
def ask(request: pytest.FixtureRequest) -> Callable[..., Any]:
    return request.param


async def test_a_call_is_tried_until_it_is_answered(rig: Any, ask: Callable[..., Any]) -> None:
    rig.handler.attempts.failures = 2
    reply = await ask(rig.address, rig.credential(), "hello", QUICK)
    assert reply.text == "hello"
    assert rig.handler.attempts.seen == ["hello"] * 3


async def test_attempts_end(rig: Any, ask: Callable[..., Any]) -> None:
    rig.handler.attempts.failures = 9
    with pytest.raises(Unavailable) as caught:
        await ask(rig.address, rig.credential(), "hello", QUICK)
    assert caught.value.reason == "AWAY"
    assert len(rig.handler.attempts.seen) == 3


async def test_what_will_fail_again_is_asked_once(rig: Any, ask: Callable[..., Any]) -> None:
    with pytest.raises(NotFound):
        await ask(rig.address, rig.credential(), "not found", QUICK)
    assert rig.handler.attempts.seen == ["not found"]


async def test_without_retries_one_failure_is_enough(rig: Any, ask: Callable[..., Any]) -> None:
    rig.handler.attempts.failures = 1
    with pytest.raises(Unavailable):
        await ask(rig.address, rig.credential(), "hello", Retry(attempts=1))
    assert len(rig.handler.attempts.seen) == 1


async def test_a_server_that_is_not_there_is_unavailable(ask: Callable[..., Any]) -> None:
    with pytest.raises(Unavailable):
        await ask("127.0.0.1:1", "key", "hello", QUICK)
