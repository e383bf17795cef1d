"""The Tailrace server: resource manager, filesystem and SQLite storage, memory variants."""

from tailrace_impl_server._filesystem_storage import FilesystemStorage
from tailrace_impl_server._local_events import LocalEventBus
from tailrace_impl_server._manager import Manager
from tailrace_impl_server._memory_catalog import MemoryCatalog
from tailrace_impl_server._memory_storage import MemoryStorage
from tailrace_impl_server._server import ManagedServer, create_manager
from tailrace_impl_server._settings import ServerSettings
from tailrace_impl_server._sqlite_catalog import SqliteCatalog
from tailrace_impl_server._token_authenticator import TokenAuthenticator
from tailrace_impl_server._token_file import TokenEntry, TokenFile

__all__ = [
    "FilesystemStorage",
    "LocalEventBus",
    "ManagedServer",
    "Manager",
    "MemoryCatalog",
    "MemoryStorage",
    "ServerSettings",
    "SqliteCatalog",
    "TokenAuthenticator",
    "TokenEntry",
    "TokenFile",
    "create_manager",
]
