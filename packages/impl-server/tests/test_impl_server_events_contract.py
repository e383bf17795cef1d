"""The event bus contract over the bus within a process."""

from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager

from tailrace_impl_server._local_events import LocalEventBus
from tailrace_server_api import EventBus
from tailrace_server_api.contracts.events import EventBusContract


class TestLocalEventBus(EventBusContract):
    @asynccontextmanager
    async def new_bus(self) -> AsyncGenerator[EventBus, None]:
        bus = LocalEventBus()
        await bus.start()
        yield bus
        await bus.close()
