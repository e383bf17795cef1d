"""A handler of the standard library's logging that streams records into a resource.

``emit`` formats, and puts a line where it waits: in memory and then on disk, or in memory alone. One daemon thread with
an event loop of its own, started by the first record, opens the upload and hands it what waits; it comes back after a
lost connection as every upload does. So whoever logs never waits for the network.
"""

from __future__ import annotations

import asyncio
import logging
import math
import os
import random
import secrets
import socket
import tempfile
import threading
import weakref
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tailrace._connect import ClientArguments, client_urls, prepare_client
from tailrace_client_upload_api import WAIT, DropOldest, SpoolToDisk, UploadSession
from tailrace_common_api import ConfigurationError, TailraceError, url_scheme

if TYPE_CHECKING:
    from tailrace_impl_common import ConnectedClient, WaitingBytes

_OWN_LOGGERS = ("tailrace", "grpc", "websockets")
_FIRST_PAUSE, _LONGEST_PAUSE = 0.1, 10.0
"""Pauses between attempts to open an upload, in seconds."""
_PIECE = 256 * 1024

_handlers: weakref.WeakSet[ResourceHandler] = weakref.WeakSet()


class ResourceHandler(logging.Handler):
    """Streams log records, one line each as formatted, into a resource that others can follow.

    The resource is made with the first record. While the server is away, also at the start, records wait: in a spool on
    disk by default. Logging never waits for the server and never raises into the application; what goes wrong is told
    as :meth:`logging.Handler.handleError` does. Records of Tailrace and of its transports are ignored.

    :func:`logging.shutdown`, which runs at the exit of the interpreter, sends what waits and completes the resource,
    for at most ``exit_timeout`` seconds. In a child of :func:`os.fork` records go to a resource of the child's own;
    over gRPC, which does not survive a fork, they are dropped there, and ``GRPC_ENABLE_FORK_SUPPORT=0`` should be set
    in the environment: gRPC may crash in the child otherwise.

    When the server ends the resource (its grace period is over, it was deleted), a new one goes on with what was not
    announced; its first line names the one before.
    """

    def __init__(
        self,
        url: str | Sequence[str] | None = None,
        *,
        resource: str = "application.log",
        while_away: SpoolToDisk | DropOldest | None = None,
        labels: Mapping[str, str] | None = None,
        context: str | None = None,
        level: int | str = logging.NOTSET,
        exit_timeout: float = 5.0,
        config: str | os.PathLike[str] | None = None,
        token: str | None = None,
    ) -> None:
        """Read settings and find the transport; nothing is sent yet. Blocking.

        Args:
            url: Server, or several ways to it; ``None`` for what ``TAILRACE_SERVER`` or the settings file names.
            resource: Name of the resource.
            while_away: Where records wait; ``None`` for a spool of 256 MiB in the folder for temporary files. A record
                that finds the spool full is dropped, and a line says so later.
            labels: Labels of the resource.
            context: Context that is to own the resource.
            level: Least level of records that are taken.
            exit_timeout: Longest time for :meth:`flush` and for :meth:`close`, in seconds.
            config: Settings file; see :func:`tailrace.connect`.
            token: Bearer token; ``None`` for that of the settings.

        Raises:
            ConfigurationError: No URL is given or set, or a setting cannot work.
        """
        super().__init__(level)
        if not exit_timeout >= 0:
            raise ConfigurationError(field="exit_timeout", problem="not a number of seconds from 0 on")
        arguments = ClientArguments(reconnect_timeout=math.inf)
        if token is not None:
            arguments["token"] = token
        self._make_client = prepare_client(url, arguments, config)
        self._over_grpc = url is None or any(url_scheme(named).startswith("grpc") for named in client_urls(url))
        self._resource = resource
        self._while_away = while_away or SpoolToDisk(
            directory=Path(tempfile.gettempdir()) / f"tailrace-logs-{os.getuid()}", max_bytes=256 * 1024 * 1024
        )
        self._labels = dict(labels or {})
        self._context = context
        self._exit_timeout = exit_timeout
        self._silent = False
        self._shipper: _Shipper | None = None
        _handlers.add(self)

    @property
    def reference(self) -> str | None:
        """Reference of the newest resource; ``None`` while the server has not accepted one."""
        shipper = self._shipper
        return None if shipper is None else shipper.reference

    def filter(self, record: logging.LogRecord) -> bool:
        """Refuse what Tailrace and its transports log, and what the thread that sends gives rise to.

        That has to be here: what a filter lets through takes the lock of the handler, and :func:`logging.shutdown`
        holds that while it waits for this very thread.
        """
        shipper = self._shipper
        if _is_own(record) or (shipper is not None and threading.get_ident() == shipper.ident):
            return False
        return super().filter(record)

    def emit(self, record: logging.LogRecord) -> None:
        """Put a record where it waits for the server."""
        if self._silent:
            return
        shipper = self._shipper
        try:
            line = self.format(record).encode("utf-8", "backslashreplace") + b"\n"
            if shipper is None:
                shipper = self._shipper = self._start()
            shipper.put(line)
        except RecursionError:
            raise
        except Exception:  # noqa: BLE001 - whatever it is, the application is not to suffer from its logging
            self.handleError(record)

    def flush(self) -> None:
        """Wait until every record so far is announced, for at most ``exit_timeout`` seconds."""
        if self._shipper is not None:
            self._shipper.flush(self._exit_timeout)

    def close(self) -> None:
        """Send what waits and complete the resource, within ``exit_timeout`` seconds; idempotent.

        A record behind that begins a new resource.
        """
        shipper, self._shipper = self._shipper, None
        if shipper is not None:
            shipper.close(self._exit_timeout)
        super().close()

    def _start(self) -> _Shipper:
        from tailrace_impl_common import DropOldestBytes, Spool

        away = self._while_away
        waiting: WaitingBytes = (
            Spool(away.directory, away.max_bytes)
            if isinstance(away, SpoolToDisk)
            else DropOldestBytes(away.max_bytes, at_line_start=True)
        )
        waiting.open()
        return _Shipper(waiting, self._make_client, self._open)

    def _open(self, client: ConnectedClient, key: str) -> UploadSession:
        return client.upload(
            self._resource,
            content_type="text/plain; charset=utf-8",
            lines=True,
            labels=self._labels,
            context=self._context,
            idempotency_key=key,
            while_away=WAIT,
        )

    def _forget(self) -> None:
        """Begin anew in the child of a fork: thread, loop, connection and file are the parent's."""
        self.createLock()
        self._silent = self._over_grpc and self._shipper is not None
        self._shipper = None


def _is_own(record: logging.LogRecord) -> bool:
    name = record.name.partition(".")[0]
    return name in _OWN_LOGGERS or name.startswith("tailrace_")


def _forget_all() -> None:
    for handler in _handlers:
        handler._forget()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget_all)


class _Loop(asyncio.SelectorEventLoop):
    """An event loop that resolves names without a thread: at the exit of the interpreter there are no new ones."""

    async def getaddrinfo(
        self,
        host: bytes | str | None,
        port: bytes | str | int | None,
        *,
        family: int = 0,
        type: int = 0,
        proto: int = 0,
        flags: int = 0,
    ) -> list[Any]:
        # Nothing else runs in this loop that could not wait.
        return socket.getaddrinfo(host, port, family, type, proto, flags)


class _Shipper:
    """The thread that sends, and what it has not sent yet."""

    def __init__(
        self,
        waiting: WaitingBytes,
        make_client: Callable[[], ConnectedClient],
        upload: Callable[[ConnectedClient, str], UploadSession],
    ) -> None:
        """Start the thread."""
        self.reference: str | None = None
        self._waiting = waiting
        self._make_client = make_client
        self._upload = upload
        # Guards everything below; its waiters wait for ``_announced`` to rise or for the end.
        self._changed = threading.Condition()
        self._put = 0
        self._announced = 0
        self._dropped = 0
        self._flush_until = 0
        # What was written to the session and not announced, and the offset of its first byte; the thread's alone.
        self._sent: deque[bytes] = deque()
        self._first = 0
        self._closing = False
        self._ended = False
        self._loop: asyncio.AbstractEventLoop | None = None
        self._work = asyncio.Event()
        self._thread = threading.Thread(target=self._run, name="tailrace-logging", daemon=True)
        self._thread.start()

    @property
    def ident(self) -> int | None:
        """Number of the thread."""
        return self._thread.ident

    # The side of those who log.

    def put(self, line: bytes) -> None:
        """Let a line wait; drop it where there is no room.

        Raises:
            OSError: The spool cannot be written.
        """
        with self._changed:
            if self._dropped and self._waiting.fits(len(line) + 100):
                marker = b"[%d log records were dropped here: the spool was full]\n" % self._dropped
                self._add(marker)
                self._dropped = 0
            if self._dropped or not self._waiting.fits(len(line)):
                self._dropped += 1
                return
            self._add(line)
        self._wake()

    def _add(self, data: bytes) -> None:
        for start in range(0, len(data), _PIECE):
            self._waiting.add(data[start : start + _PIECE])
        self._put += 1

    def flush(self, timeout: float) -> None:
        """Wait until what was put before is announced, at most for a time in seconds."""
        if threading.current_thread() is self._thread:
            return
        with self._changed:
            self._flush_until = target = self._put
            self._wake()
            self._changed.wait_for(lambda: self._announced >= target or self._ended, timeout)

    def close(self, timeout: float) -> None:
        """Let the thread send what waits, complete the resource and end; wait for it at most for a time in seconds."""
        with self._changed:
            self._closing = True
        self._wake()
        if threading.current_thread() is not self._thread:
            self._thread.join(timeout)

    def _wake(self) -> None:
        loop = self._loop
        if loop is not None:
            try:
                loop.call_soon_threadsafe(self._work.set)
            except RuntimeError:
                # The loop is closed: the thread ends.
                return

    # The side of the thread.

    def _run(self) -> None:
        try:
            with asyncio.Runner(loop_factory=_Loop) as runner:
                runner.run(self._ship())
        finally:
            with self._changed:
                self._ended = True
                self._waiting.close()
                self._changed.notify_all()

    async def _ship(self) -> None:
        self._loop = asyncio.get_running_loop()
        pause = _FIRST_PAUSE
        # An attempt whose answer was lost does not leave a resource behind: the next one finds it by its key.
        key = secrets.token_hex(16)
        while not self._is_done():
            opened: UploadSession | None = None
            try:
                async with self._make_client() as client:
                    session = self._upload(client, key)
                    await session.open()
                    key = secrets.token_hex(16)
                    opened, pause = session, _FIRST_PAUSE
                    before, self.reference = self.reference, session.reference
                    await self._take_up(session, before)
                    await self._send_all(session)
                    return
            except TailraceError:
                # What becomes of the connection must not end what logs. The pause is cut short by closing alone.
                if opened is not None:
                    self._forget_announced(opened)
                await self._pause(random.random() * pause)
                pause = min(2 * pause, _LONGEST_PAUSE)

    async def _take_up(self, session: UploadSession, before: str | None) -> None:
        """Send again what the resource before has not announced; it is ``None`` for the first one."""
        again, self._sent, self._first = self._sent, deque(), 0
        if before is not None:
            again.appendleft(f"[continues {before}]\n".encode())
        try:
            while again:
                await self._write(session, again.popleft())
        finally:
            self._sent.extend(again)

    async def _send_all(self, session: UploadSession) -> None:
        """Send what waits until the handler is closed, then complete the resource."""
        while True:
            self._work.clear()
            with self._changed:
                data = self._waiting.take()
                put = self._put
                flushing = self._flush_until > self._announced
                closing = self._closing
            if data:
                await self._write(session, data)
            elif flushing or closing:
                await session.flush()
                with self._changed:
                    self._announced = put
                    self._changed.notify_all()
                if closing:
                    await session.finish()
                    return
            else:
                await self._work.wait()

    async def _write(self, session: UploadSession, data: bytes) -> None:
        # Kept before it is sent: if the session ends for good, the next one begins with what was not announced.
        self._sent.append(data)
        await session.write(data)
        self._forget_announced(session)

    def _forget_announced(self, session: UploadSession) -> None:
        """Let go of what the server has announced: at most what the session has not is kept, two windows."""
        announced = session.announced.size
        while self._sent and self._first + len(self._sent[0]) <= announced:
            self._first += len(self._sent.popleft())

    def _is_done(self) -> bool:
        with self._changed:
            return self._closing and not self._waiting.size

    async def _pause(self, seconds: float) -> None:
        try:
            async with asyncio.timeout(seconds):
                while not self._is_done():
                    self._work.clear()
                    await self._work.wait()
        except TimeoutError:
            return
