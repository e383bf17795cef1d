"""The events of a context, seen from a client."""

from __future__ import annotations

from collections.abc import AsyncGenerator

from tailrace_common_api import (
    ConnectionLost,
    DeadlineExceeded,
    InvalidArgument,
    ProtocolError,
    TailraceError,
    check_id,
)
from tailrace_impl_common._reconnecting import ServerLink, ask
from tailrace_impl_common._streams import ClientStream
from tailrace_impl_common.messages import Context, ContextEvent, GetContext, WatchContext, Watched


async def context_events(link: ServerLink, id: str, after: int) -> AsyncGenerator[ContextEvent, None]:
    """Yield the events of context ``id`` behind number ``after``; comes back behind the last one when it is lost."""
    check_id(id)
    if after < 0:
        raise InvalidArgument(field="after", problem=f"{after} is negative")
    reconnection = link.reconnection()
    known, established = after, False
    while True:
        lost: TailraceError
        stream: ClientStream | None = None
        try:
            # Nothing may happen in a context for long: this tells at once that the server and the context are there.
            context = await ask(link.connection, GetContext(id=id), Context)
            if established and context.last_event < known:
                # The server was restarted, and counts from 1 again.
                known = 0
            stream = await link.connection.open(WatchContext(id=id, after=known))
            link.opened(reconnection)
            established = True
            while True:
                message = await stream.receive()
                if isinstance(message, Watched):
                    return
                if message is None:
                    raise ConnectionLost("the server ended the conversation before the context was closed")
                if not isinstance(message, ContextEvent):
                    raise ProtocolError(f"{type(message).__name__} received while watching a context")
                known = message.sequence
                if reconnection.pending:
                    reconnection.progress()
                yield message
        except TailraceError as error:
            lost = error
            if stream is not None:
                link.lose(stream, lost)
        finally:
            if stream is not None:
                await stream.close()
        if not (established or (link.worked and not isinstance(lost, DeadlineExceeded))):
            raise lost
        await link.come_back(reconnection, lost)
