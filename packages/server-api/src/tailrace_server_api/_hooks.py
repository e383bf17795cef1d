"""What an embedding application is told of, and where it may object."""

from __future__ import annotations

from tailrace_common_api import Status


class Veto(Exception):
    """Raised by a hook to refuse: a creation, or more of an upload. Its text goes to the uploader."""


class ServerHooks:
    """Called by the server as resources come into being and end; each method does nothing until it is overridden.

    A hook runs beside the uploads of others, and an upload waits only for :meth:`on_created`. What a hook raises is
    logged and changes nothing, but for :class:`Veto` where it is allowed. A hook that takes longer than the server's
    ``hook_timeout`` is cancelled, which counts as such an error.
    """

    async def on_created(self, status: Status, principal: str) -> None:
        """Called before a new resource is answered.

        Args:
            status: The new resource.
            principal: Name of who creates it; empty without authentication.

        Raises:
            Veto: It must not exist: nothing is left of it, and the uploader gets ``PermissionDenied``.
        """

    async def on_growth(self, status: Status) -> None:
        """Called when a resource has grown, at most once a second for each, and once at its end.

        Raises:
            Veto: It must not grow any more: it ends FAILED, and the uploader gets ``PermissionDenied``. At the end of
                an upload a veto comes too late, and is logged.
        """

    async def on_completed(self, status: Status) -> None:
        """Called behind the completion of a resource."""

    async def on_failed(self, status: Status) -> None:
        """Called behind the failure of a resource."""
