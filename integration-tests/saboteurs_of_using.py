"""Defects around packages, the choice of a transport, blocking code, and the command line."""

from __future__ import annotations

import importlib
import logging
import sys
import threading
from collections.abc import Callable
from importlib.abc import MetaPathFinder
from typing import Any

from sabotage import executed, put, saboteur


@saboteur("USE-1")
def interface_imports_a_third_party() -> None:
    class Finder(MetaPathFinder):
        def find_spec(self, name: str, *_: object) -> None:
            if name == "tailrace_server_api":
                executed()
                importlib.import_module("xxhash")

    sys.meta_path.insert(0, Finder())


@saboteur("USE-2", cell="grpc-memory")
def missing_transport_names_no_package() -> None:
    from tailrace_common_api import TransportMissing

    real: Callable[..., None] = TransportMissing.__init__

    def init(self: Any, *, scheme: str, package: str) -> None:
        executed()
        real(self, scheme=scheme, package="a package")

    TransportMissing.__init__ = init  # type: ignore[method-assign]  # the defect


@saboteur("USE-2", cell="websocket-memory")
def environment_is_not_asked() -> None:
    from tailrace import _settings

    real: Callable[..., Any] = _settings.load_settings

    def load_settings(arguments: Any = None, *, environment: Any = None, **more: Any) -> Any:
        executed()
        return real(arguments, environment={}, **more)

    for module in (_settings, importlib.import_module("tailrace._connect")):
        vars(module)["load_settings"] = load_settings


@saboteur("USE-4", trap="shared-poller", cell="grpc-memory")
def several_loops_disturb_the_poller() -> None:
    from tailrace_impl_grpc._client import GrpcConnection

    real: Callable[..., Any] = vars(GrpcConnection)["_connect"]

    async def _connect(self: Any) -> Any:
        if threading.current_thread() is not threading.main_thread():
            executed()
            logging.getLogger("asyncio").error("Exception in callback PollerCompletionQueue._handle_events()")
        return await real(self)

    put(GrpcConnection, "_connect", _connect)


@saboteur("USE-4")
def blocking_interface_lacks_a_name() -> None:
    from tailrace_client_download_api.sync import RemoteResource

    executed()
    del RemoteResource.locate_line


@saboteur("USE-5", cell="grpc-filesystem")
def every_failure_has_the_same_exit_code() -> None:
    from tailrace import _exit_codes

    executed()
    for cls in list(_exit_codes._CODES):
        _exit_codes._CODES[cls] = _exit_codes.ExitCode.FAILED


@saboteur("USE-6", cell="websocket-filesystem")
def follower_writes_when_everything_is_there() -> None:
    from tailrace import _output

    real: Callable[..., Any] = _output._copy

    async def copy(chunks: Any, writer: Any, report: Any) -> None:
        executed()
        kept = [chunk async for chunk in chunks]

        async def again() -> Any:
            for chunk in kept:
                yield chunk

        await real(again(), writer, report)

    _output._copy = copy
