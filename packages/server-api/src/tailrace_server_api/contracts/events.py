"""What an event bus must do."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Callable, Collection
from contextlib import AbstractAsyncContextManager

import pytest
import pytest_asyncio

from tailrace_server_api import EventBus


class _Heard:
    """A listener that keeps what it heard and can be waited for."""

    def __init__(self) -> None:
        self.calls: list[frozenset[str] | None] = []
        self._called = asyncio.Event()

    def __call__(self, ids: Collection[str] | None) -> None:
        self.calls.append(None if ids is None else frozenset(ids))
        self._called.set()

    async def until(self, id: str) -> None:
        """Wait until something was heard that calls for looking at ``id``."""
        while not any(call is None or id in call for call in self.calls):
            self._called.clear()
            await self._called.wait()


@pytest.mark.asyncio
class EventBusContract:
    """Subclass it, name the subclass ``Test…`` and implement :meth:`new_bus`."""

    def new_bus(self) -> AbstractAsyncContextManager[EventBus]:
        """Return a context in which a started bus exists; it is closed at the end."""
        raise NotImplementedError

    @pytest_asyncio.fixture
    async def bus(self) -> AsyncGenerator[EventBus, None]:
        async with self.new_bus() as bus:
            yield bus

    async def test_a_hint_reaches_every_listener(self, bus: EventBus) -> None:
        first, second = _Heard(), _Heard()
        bus.subscribe(first)
        bus.subscribe(second)
        bus.publish(["a", "b"])
        for heard in (first, second):
            await heard.until("a")
            await heard.until("b")

    async def test_hints_that_follow_one_another_all_arrive(self, bus: EventBus) -> None:
        heard = _Heard()
        bus.subscribe(heard)
        for number in range(100):
            bus.publish([f"id-{number}"])
        for number in range(100):
            await heard.until(f"id-{number}")

    async def test_publishing_calls_no_listener_itself(self, bus: EventBus) -> None:
        heard = _Heard()
        bus.subscribe(heard)
        bus.publish(["a"])
        assert heard.calls == []
        await heard.until("a")

    async def test_an_ended_subscription_hears_nothing(self, bus: EventBus) -> None:
        ended, heard = _Heard(), _Heard()
        end = bus.subscribe(ended)
        bus.subscribe(heard)
        end()
        end()
        bus.publish(["a"])
        await heard.until("a")
        assert ended.calls == []

    async def test_one_listener_may_subscribe_twice(self, bus: EventBus) -> None:
        heard = _Heard()
        end = bus.subscribe(heard)
        bus.subscribe(heard)
        end()
        bus.publish(["a"])
        await heard.until("a")

    async def test_a_listener_may_end_subscriptions_while_it_is_called(self, bus: EventBus) -> None:
        heard = _Heard()
        ends: list[Callable[[], None]] = []

        def listener(ids: Collection[str] | None) -> None:
            for end in ends:
                end()
            heard(ids)

        ends += [bus.subscribe(listener), bus.subscribe(listener)]
        bus.publish(["a"])
        await heard.until("a")
        after = _Heard()
        bus.subscribe(after)
        bus.publish(["b"])
        await after.until("b")
        assert len(heard.calls) == 1

    async def test_a_listener_that_fails_keeps_no_hint_from_the_others(self, bus: EventBus) -> None:
        def fails(ids: Collection[str] | None) -> None:
            raise ValueError("a defect of a listener")

        heard = _Heard()
        bus.subscribe(fails)
        bus.subscribe(heard)
        bus.publish(["a"])
        await heard.until("a")

    async def test_nobody_is_called_once_the_bus_is_closed(self) -> None:
        async with self.new_bus() as bus, self.new_bus() as other:
            heard, witness = _Heard(), _Heard()
            bus.subscribe(heard)
            other.subscribe(witness)
            bus.publish(["a"])
            await bus.close()
            calls = len(heard.calls)
            bus.publish(["b"])
            other.publish(["c"])
            await witness.until("c")
            assert len(heard.calls) == calls
            await bus.close()
