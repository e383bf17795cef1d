"""The tokens of a server, as the command line changes them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from importlib.metadata import entry_points
from typing import Protocol

from tailrace_common_api import ConfigurationError
from tailrace_server_api import Operation

TOKEN_STORES = "tailrace.token_stores"
"""Entry-point group of token stores: value a callable that takes the path of a file and returns a ``TokenStore``."""


class TokenEntry(Protocol):
    """What is known of a token, which is not the token itself."""

    @property
    def name(self) -> str: ...

    @property
    def scopes(self) -> frozenset[Operation]: ...

    @property
    def context(self) -> str | None: ...

    @property
    def created_at(self) -> float: ...

    @property
    def expires_at(self) -> float | None: ...


class TokenStore(Protocol):
    """The tokens of a server. All methods block, and raise ``ConfigurationError``."""

    def add(
        self, name: str, scopes: Iterable[Operation], *, context: str | None = None, expires_in: float | None = None
    ) -> str:
        """Add a token, valid for so many seconds, and return it."""

    def revoke(self, name: str) -> None:
        """Remove a token."""

    def entries(self) -> Mapping[str, TokenEntry]:
        """Return what is known of all tokens."""


def open_token_store(path: str) -> TokenStore:
    """Return the tokens in a file.

    Raises:
        ConfigurationError: No server is installed that has any.
    """
    found = next(iter(entry_points(group=TOKEN_STORES, name="default")), None)
    if found is None:
        raise ConfigurationError(field="server", problem="no server is installed; install tailrace-impl-server")
    store: TokenStore = found.load()(path)
    return store
