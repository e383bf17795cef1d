"""Who calls, and whether it may: what an embedding application decides is never trusted to work."""

from __future__ import annotations

import logging

from tailrace_common_api import InternalError, TailraceError
from tailrace_server_api import Authenticator, Authorizer, Credentials, Operation, Principal

logger = logging.getLogger(__name__)


async def identify(authenticator: Authenticator, credentials: Credentials) -> Principal:
    """Return who shows ``credentials``.

    Raises:
        Unauthenticated: They prove nothing.
        InternalError: The authenticator failed, or did not return a principal. It is logged, and nobody is let in.
    """
    try:
        principal: object = await authenticator.authenticate(credentials)
    except TailraceError:
        raise
    except Exception as exc:
        logger.exception("the authenticator failed", extra={"peer": credentials.peer})
        raise InternalError("the caller could not be authenticated; the server's log says why") from exc
    if not isinstance(principal, Principal):
        logger.error("the authenticator returned %s, which is no principal", type(principal).__name__)
        raise InternalError("the caller could not be authenticated; the server's log says why")
    return principal


async def authorize(
    authorizer: Authorizer, principal: Principal, operation: Operation, *, context: str | None, id: str | None = None
) -> None:
    """Return if ``principal`` may do this.

    Raises:
        PermissionDenied: It may not.
        NotFound: It may not, and is not to know what there is.
        InternalError: The authorizer failed. It is logged, and nothing is done.
    """
    try:
        await authorizer.authorize(principal, operation, context=context, id=id)
    except TailraceError:
        raise
    except Exception as exc:
        logger.exception("the authorizer failed", extra={"resource": id, "principal": principal.name})
        raise InternalError("access could not be decided; the server's log says why") from exc
