"""Deleting resources."""

from __future__ import annotations

import logging
from contextlib import suppress

from tailrace_common_api import ContextEventKind, NotFound, TailraceError
from tailrace_impl_server._live_resource import LiveResource
from tailrace_impl_server._server_parts import ServerParts
from tailrace_impl_server._tokens import token_matches

logger = logging.getLogger(__name__)


class Removal:
    """Deletes resources, whoever uses them. Belongs to one event loop."""

    def __init__(self, parts: ServerParts) -> None:
        self._parts = parts

    async def delete(self, id: str, token: str | None, *, authorised: bool) -> None:
        """Delete a resource; its uploader and its readers are told first.

        Args:
            id: Resource id.
            token: Upload token; needed for an atomic resource before it is COMPLETED.
            authorised: Whether it may be deleted without that.

        Raises:
            NotFound: There is none, or none that the caller may see.
            StorageFailure: It could not be deleted. Who used it has been told that it was; it can be opened again.
        """
        registry = self._parts.registry
        async with registry.locked(id):
            live = await registry.acquire_locked(id)
            try:
                if not authorised and live.hidden and not token_matches(token, live.descriptor.token_hash):
                    raise NotFound(id=id)
                session = live.session
                live.mark_deleted()
                if session is not None:
                    await session.ended()
                await self._erase(live)
            finally:
                registry.release(live)

    async def discard(self, live: LiveResource, *, unheard_of: bool = False) -> None:
        """Delete what an upload leaves that must not be; its session, if any, knows.

        Args:
            live: The resource.
            unheard_of: Whether its context was never told of it.
        """
        session, live.session = live.session, None
        try:
            live.mark_deleted()
            await self._erase(live, unheard_of=unheard_of)
        finally:
            live.session = session

    async def _erase(self, live: LiveResource, *, unheard_of: bool = False) -> None:
        """Remove a resource; until that is done it stays in use, marked as deleted, so that nobody loads it again."""
        parts = self._parts
        parts.registry.retain(live)
        try:
            parts.sweeper.cancel_grace(live.id)
            try:
                with suppress(NotFound):
                    await parts.storage.delete(live.id)
            except TailraceError:
                # It is still there, for all who come from here on.
                parts.registry.forget(live)
                if not live.snapshot.state.terminal:
                    parts.sweeper.begin_grace(live.id, None)
                raise
            parts.quotas.remove(live.id, live.descriptor.metadata.context, live.snapshot.size)
            if not (live.hidden or unheard_of):
                parts.context_events.about(ContextEventKind.DELETED, live)
            await parts.follower.remove(live.id)
            parts.bus.publish((live.id,))
            parts.telemetry.deleted()
            logger.info("deleted", extra={"resource": live.id})
        finally:
            parts.registry.release(live)
