"""Defects around access."""

from __future__ import annotations

from typing import Any

from sabotage import executed, put, saboteur


@saboteur("ACC-1", cell="grpc-memory")
def scopes_are_not_looked_at() -> None:
    from tailrace_impl_server import _access

    async def authorize(self: Any, principal: Any, operation: Any, *, context: Any, id: Any) -> None:
        executed()

    put(_access.ScopeAuthorizer, "authorize", authorize)


@saboteur("ACC-1", cell="in-process-memory")
def the_secret_of_a_token_is_not_compared() -> None:
    from tailrace_impl_server import _token_authenticator

    def find(token: str, entries: Any, now: float) -> Any:
        executed()
        return entries.get(token[3:19])

    put(_token_authenticator, "find_token", find)


@saboteur("RES-6", cell="in-process-memory")
def references_open_what_is_outside_of_the_context() -> None:
    from tailrace_impl_server import _access

    async def within(self: Any, operation: Any, id: str) -> None:
        executed()
        await self._authorize(operation, context=self._principal.context)

    put(_access.Guard, "_authorize_resource", within)


@saboteur("ACC-2", cell="websocket-memory")
def certificates_of_servers_are_not_checked() -> None:
    import ssl

    from tailrace_impl_websocket import _client

    def trusting(settings: Any) -> ssl.SSLContext:
        executed()
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
        return context

    put(_client, "client_context", trusting)


@saboteur("ACC-1", cell="websocket-memory")
def pages_of_every_origin_are_let_in() -> None:
    from tailrace_impl_websocket import _origins

    def allows(self: Any, origin: str, *, scheme: str, host: str) -> bool:
        executed()
        return True

    put(_origins.Origins, "allows", allows)
