"""Defects around lines."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from sabotage import executed, put, saboteur


@saboteur("LIN-1")
def unterminated_line_counts_while_it_grows() -> None:
    from tailrace_server_api import Snapshot

    def lines(self: Any) -> int:
        if self.open_line:
            executed()
        return int(self.newlines) + int(self.open_line)

    Snapshot.lines = property(lines)  # type: ignore[method-assign,assignment]  # the defect


@saboteur("LIN-2", trap="index-ahead")
def last_line_reaches_to_the_announced_size() -> None:
    from tailrace_impl_server._reader import LiveReader

    real: Callable[..., Any] = LiveReader.line_offset

    async def line_offset(self: Any, line: int, snapshot: Any) -> Any:
        if line == snapshot.newlines and snapshot.open_line:
            executed()
            return snapshot.size
        return await real(self, line, snapshot)

    LiveReader.line_offset = line_offset  # type: ignore[method-assign]  # the defect


@saboteur("LIN-3")
def last_lines_are_one_too_few() -> None:
    from tailrace_impl_common import _serve_download

    real: Callable[..., tuple[int, int]] = vars(_serve_download)["last_lines"]

    def last_lines(count: int, lines: int) -> tuple[int, int]:
        first, end = real(count, lines)
        executed()
        return min(first + 1, end), end

    vars(_serve_download)["last_lines"] = last_lines


@saboteur("LIN-4")
def lines_are_found_by_reading_everything() -> None:
    from tailrace_impl_common import find_newline
    from tailrace_impl_server._reader import LiveReader

    async def behind_newline(self: Any, newlines: int, size: int) -> int:
        executed()
        return find_newline(await self._read_exactly(0, size), newlines)

    LiveReader._behind_newline = behind_newline  # type: ignore[method-assign]  # the defect


@saboteur("LIN-4", cell="grpc-filesystem")
def a_block_is_looked_for_record_by_record() -> None:
    from tailrace_impl_server import _filesystem_reader

    real: Callable[..., Any] = vars(_filesystem_reader)["search_newline"]

    def search(newlines: int, blocks: int, read: Callable[[int, int], Any]) -> Any:
        for block in range(blocks):
            executed()
            read(block, 1)
        return real(newlines, blocks, read)

    put(_filesystem_reader, "search_newline", search)


@saboteur("LIN-5", "INT-3")
def answers_come_in_one_piece() -> None:
    from tailrace_impl_common._serve_download import _DownloadConversation

    real: Callable[..., None] = _DownloadConversation.__init__

    def init(self: Any, *arguments: Any, **more: Any) -> None:
        executed()
        real(self, *arguments, **more)
        self._chunk_size *= 1000

    _DownloadConversation.__init__ = init  # type: ignore[method-assign]  # the defect


@saboteur("LIN-6")
def lines_out_of_range_are_moved_into_it() -> None:
    from tailrace_impl_common import _serve_download

    real: Callable[..., tuple[int, int]] = vars(_serve_download)["resolve_lines"]

    def resolve_lines(first: int, count: int | None, lines: int) -> tuple[int, int]:
        if first > lines:
            executed()
        return real(min(first, lines), count, lines)

    vars(_serve_download)["resolve_lines"] = resolve_lines
