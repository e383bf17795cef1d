"""Queries: arguments, sources that are functions, and batches that hold nothing back."""

from __future__ import annotations

import asyncio
import functools
import json
import tracemalloc
from collections.abc import AsyncGenerator, Callable, Mapping, Sequence
from contextlib import aclosing
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tailrace_common_api import (
    MAX_RECORD_SIZE,
    Argument,
    ConfigurationError,
    GoingAway,
    InvalidArgument,
    QueryFailed,
    Record,
    RecordBatch,
    RecordEndNotFound,
    StorageFailure,
)
from tailrace_impl_common.record_messages import MESSAGE_BYTES, MESSAGE_RECORDS
from tailrace_impl_server._function_source import FunctionSource
from tailrace_impl_server._query_batches import QueryBatches
from tailrace_impl_server._record_streams import RecordStreams
from tailrace_impl_server._settings import ServerSettings
from tailrace_server_api import RecordEnds, RecordSource, Source


class Produced(RecordSource):
    """Gives batches as a test has made them, and remembers what happens to it."""

    def __init__(self, make: Callable[[], AsyncGenerator[RecordBatch, None]]) -> None:
        self._make = make
        self.arguments: list[Mapping[str, Argument]] = []
        self.made = 0
        self.ended = asyncio.Event()
        self.known: dict[str, type] = {"text": str, "whole": int, "number": float, "flag": bool}
        self.needed: frozenset[str] = frozenset()

    @property
    def parameters(self) -> Mapping[str, type]:
        return self.known

    @property
    def required(self) -> frozenset[str]:
        return self.needed

    async def query(self, arguments: Mapping[str, Argument]) -> AsyncGenerator[RecordBatch, None]:
        self.arguments.append(arguments)
        try:
            async with aclosing(self._make()) as batches:
                async for batch in batches:
                    self.made += len(batch.data)
                    yield batch
        finally:
            self.ended.set()


async def numbers(count: int) -> AsyncGenerator[RecordBatch, None]:
    """Never waits."""
    for number in range(count):
        yield RecordBatch((b"%d" % number,))


async def given_batches(batches: Sequence[RecordBatch]) -> AsyncGenerator[RecordBatch, None]:
    for batch in batches:
        yield batch


def streams(source: RecordSource) -> RecordStreams:
    return RecordStreams(
        RecordEnds(sources={"source": Source(source=source, content_type="text/plain")}), ServerSettings()
    )


async def ask(source: RecordSource, **arguments: Argument) -> list[RecordBatch]:
    results = await streams(source).query("source", arguments)
    assert results.content_type == "text/plain"
    return [batch async for batch in results.batches]


async def texts(source: RecordSource, **arguments: Argument) -> list[bytes]:
    return [data for batch in await ask(source, **arguments) for data in batch.data]


# Arguments.


@pytest.mark.parametrize(
    ("name", "value", "expected"),
    [
        ("text", "x", "x"),
        ("text", "", ""),
        ("text", "5", "5"),
        ("whole", 5, 5),
        ("whole", "5", 5),
        ("whole", "-12", -12),
        ("whole", "+12", 12),
        ("whole", 2**63 - 1, 2**63 - 1),
        ("whole", str(-(2**63)), -(2**63)),
        ("number", 1.5, 1.5),
        ("number", 2, 2.0),
        ("number", "1.5", 1.5),
        ("number", "-.5e-3", -0.0005),
        ("number", "7", 7.0),
        ("flag", True, True),
        ("flag", "true", True),
        ("flag", "False", False),
    ],
)
async def test_arguments_are_read_as_their_type(name: str, value: Argument, expected: Argument) -> None:
    source = Produced(lambda: numbers(0))
    assert await ask(source, **{name: value}) == []
    assert source.arguments == [{name: expected}]
    assert type(source.arguments[0][name]) is type(expected)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("text", 5),
        ("text", True),
        ("whole", 5.0),
        ("whole", "5.0"),
        ("whole", "0x10"),
        ("whole", "1_000"),
        ("whole", " 5"),
        ("whole", "٥"),
        ("whole", ""),
        ("whole", True),
        ("whole", 2**63),
        pytest.param("whole", 10**5000, id="whole-too-large"),
        ("whole", str(2**63)),
        ("whole", "9" * 5000),
        ("number", "nan"),
        ("number", "inf"),
        ("number", "1e999"),
        ("number", float("nan")),
        ("number", float("inf")),
        pytest.param("number", 10**5000, id="number-too-large"),
        ("number", True),
        ("number", ""),
        ("number", "1,5"),
        ("flag", 1),
        ("flag", "1"),
        ("flag", "yes"),
        ("flag", ""),
        ("max_results", -1),
        ("max_results", "-1"),
        ("max_results", 1.5),
        ("max_results", True),
        ("unknown", "x"),
    ],
)
async def test_what_is_no_argument_is_refused_before_the_source_runs(name: str, value: Argument) -> None:
    source = Produced(lambda: numbers(5))
    with pytest.raises(InvalidArgument) as caught:
        await ask(source, **{name: value})
    assert caught.value.field == name
    assert len(str(caught.value)) < 300
    assert source.arguments == []


async def test_required_arguments_must_be_there() -> None:
    source = Produced(lambda: numbers(1))
    source.needed = frozenset({"whole"})
    for arguments in ({}, {"whole": None}):
        with pytest.raises(InvalidArgument, match="whole: missing"):
            await ask(source, **arguments)
    assert await texts(source, whole=1, text=None) == [b"0"]
    assert source.arguments == [{"whole": 1}]


async def test_an_unknown_source_is_told() -> None:
    with pytest.raises(RecordEndNotFound):
        await streams(Produced(lambda: numbers(1))).query("other", {})


@pytest.mark.parametrize(
    ("most", "expected"), [(0, 0), (1, 1), (7, 7), ("7", 7), (1000, 1000), (1001, 1000), (None, 1000)]
)
async def test_most_results_cut_every_source(most: Argument, expected: int) -> None:
    source = Produced(lambda: numbers(1000))
    assert len(await texts(source, max_results=most)) == expected
    assert source.arguments in ([], [{}])
    together = Produced(lambda: given_batches([RecordBatch([b"x"] * 1000)]))
    assert len(await texts(together, max_results=most)) == expected
    if expected:
        assert source.ended.is_set()
        assert together.ended.is_set()


async def test_most_results_are_told_to_a_source_that_knows_them() -> None:
    source = Produced(lambda: numbers(1000))
    source.known = {"max_results": int}
    assert len(await texts(source, max_results="5")) == 5
    assert source.arguments == [{"max_results": 5}]


# Batches.


@given(
    sizes=st.lists(
        st.lists(st.integers(0, 3 * MESSAGE_BYTES), min_size=1, max_size=5)
        | st.lists(st.integers(0, 100), min_size=1, max_size=300),
        max_size=12,
    ),
    keyed=st.lists(st.booleans(), min_size=12, max_size=12),
    pauses=st.lists(st.booleans(), min_size=12, max_size=12),
    most=st.none() | st.integers(0, 500),
)
@settings(max_examples=60, deadline=None)
async def test_batches_hold_what_the_source_gave_in_messages_of_bounded_size(
    sizes: list[list[int]], keyed: list[bool], pauses: list[bool], most: int | None
) -> None:
    block = bytes(3 * MESSAGE_BYTES)
    given_ones = [
        RecordBatch(
            [block[:size] for size in part], [f"k{n}" if n % 2 else None for n in range(len(part))] if key else ()
        )
        for part, key in zip(sizes, keyed, strict=False)
    ]

    async def make() -> AsyncGenerator[RecordBatch, None]:
        for batch, pause in zip(given_ones, pauses, strict=False):
            if pause:
                await asyncio.sleep(0)
            yield batch

    got = [batch async for batch in QueryBatches("x", make(), most=most).batches()]
    expected = [record for batch in given_ones for record in batch.records()][:most]
    found = [record for batch in got for record in batch.records()]
    assert [(len(record.data), record.key) for record in found] == [(len(one.data), one.key) for one in expected]
    for batch in got:
        assert 1 <= len(batch.data) <= MESSAGE_RECORDS
        assert len(batch.keys) in (0, len(batch.data))
        assert batch.size <= MESSAGE_BYTES or len(batch.data) == 1


async def test_the_first_batches_are_small_and_the_later_ones_large() -> None:
    batches = await ask(Produced(lambda: given_batches([RecordBatch([b"x" * 20] * 100_000)])))
    sizes = [len(batch.data) for batch in batches]
    assert sum(sizes) == 100_000
    assert sizes[:5] == [1, 2, 4, 8, 16]
    assert max(sizes) == MESSAGE_RECORDS


async def test_each_record_of_a_large_batch_is_measured_once() -> None:
    measured = 0

    class Measured(bytes):
        def __len__(self) -> int:
            nonlocal measured
            measured += 1
            return super().__len__()

    record = Measured(MESSAGE_BYTES // 10)
    batches = await ask(Produced(lambda: given_batches([RecordBatch([record] * 5000)])))
    assert sum(len(batch.data) for batch in batches) == 5000
    assert len(batches) > 500
    assert measured == 5000


async def test_the_first_record_is_there_before_a_quick_source_made_many() -> None:
    source = Produced(lambda: numbers(1_000_000))
    async with aclosing((await streams(source).query("source", {})).batches) as batches:
        assert (await anext(batches)).data == [b"0"]
        assert source.made <= 2
        for _ in range(4):
            await anext(batches)
        assert source.made < 100
    assert source.ended.is_set()


async def test_a_record_does_not_wait_for_the_next() -> None:
    wanted: asyncio.Queue[bytes] = asyncio.Queue()

    async def make() -> AsyncGenerator[RecordBatch, None]:
        while True:
            yield RecordBatch((await wanted.get(),))

    async with aclosing((await streams(Produced(make)).query("source", {})).batches) as batches:
        for number in range(50):
            wanted.put_nowait(b"%d" % number)
            async with asyncio.timeout(10):
                assert (await anext(batches)).data == [b"%d" % number]


@pytest.mark.parametrize("at_once", [1, 7, 1000])
@pytest.mark.parametrize("count", [1, 2, 3, 100, 20_000])
async def test_what_a_source_gave_before_it_fell_silent_is_handed_out(count: int, at_once: int) -> None:
    async def make() -> AsyncGenerator[RecordBatch, None]:
        records = [b"%d" % number for number in range(count)]
        for start in range(0, count, at_once):
            yield RecordBatch(records[start : start + at_once])
        await asyncio.Event().wait()

    source = Produced(make)
    async with aclosing((await streams(source).query("source", {})).batches) as batches:
        got: list[bytes] = []
        async with asyncio.timeout(50):
            while len(got) < count:
                got += (await anext(batches)).data
        assert got == [b"%d" % number for number in range(count)]
        # It is not asked again, and not closed, for that.
        assert not source.ended.is_set()
    assert source.ended.is_set()


async def test_what_was_made_while_the_reader_was_busy_comes_together() -> None:
    made = asyncio.Event()

    async def make() -> AsyncGenerator[RecordBatch, None]:
        for number in range(1000):
            yield RecordBatch((b"%d" % number,))
            await asyncio.sleep(0)
        made.set()

    async with aclosing((await streams(Produced(make)).query("source", {})).batches) as batches:
        sizes = []
        async for batch in batches:
            sizes.append(len(batch.data))
            if len(sizes) == 9:
                # A source that goes on while nobody reads fills the next message, up to its size.
                for _ in range(300):
                    await asyncio.sleep(0)
        assert sum(sizes) == 1000
        assert sizes[:9] == [1] * 9
        assert sizes[9] > 200


async def test_a_slow_reader_stops_the_source() -> None:
    record = b"x" * 1016
    source = Produced(lambda: given_batches([RecordBatch((record,))] * 100_000))
    async with aclosing((await streams(source).query("source", {})).batches) as batches:
        for _ in range(12):
            await anext(batches)
        made = -1
        while made != source.made:
            made = source.made
            for _ in range(100):
                await asyncio.sleep(0)
        # One message ahead, and one record that waits for room.
        given_out = 2**8 - 1 + 4 * 256
        assert made <= given_out + MESSAGE_BYTES // 1024 + 1


async def test_memory_does_not_grow_with_the_result() -> None:
    async def read(count: int) -> int:
        tracemalloc.start()
        try:
            async with aclosing(
                (await streams(Produced(lambda: numbers(count))).query("source", {})).batches
            ) as batches:
                async for _ in batches:
                    pass
            return tracemalloc.get_traced_memory()[1]
        finally:
            tracemalloc.stop()

    await read(1000)
    assert await read(100_000) < await read(20_000) + 1_000_000


async def test_others_have_their_turn_beside_a_source_that_never_waits() -> None:
    turns = 0
    ended = False

    async def others() -> None:
        nonlocal turns
        while not ended:
            turns += 1
            await asyncio.sleep(0)

    def make() -> AsyncGenerator[RecordBatch, None]:
        return given_batches([RecordBatch((b"x",))] * 300_000)

    task = asyncio.create_task(others())
    assert len(await texts(Produced(make), max_results=0)) == 0
    before = turns
    batches = await ask(Produced(make))
    ended = True
    await task
    assert sum(len(batch.data) for batch in batches) == 300_000
    assert turns - before > 50


# Ends.


async def test_leaving_ends_a_source_that_waits() -> None:
    async def make() -> AsyncGenerator[RecordBatch, None]:
        yield RecordBatch((b"x",))
        await asyncio.Event().wait()

    source = Produced(make)
    batches = (await streams(source).query("source", {})).batches
    assert (await anext(batches)).data == [b"x"]
    await asyncio.sleep(0)
    assert not source.ended.is_set()
    await batches.aclose()
    assert source.ended.is_set()


async def test_cancelling_who_reads_ends_a_source_that_waits() -> None:
    async def make() -> AsyncGenerator[RecordBatch, None]:
        await asyncio.Event().wait()
        yield RecordBatch((b"x",))

    source = Produced(make)

    async def read() -> None:
        async with aclosing((await streams(source).query("source", {})).batches) as batches:
            await anext(batches)

    task = asyncio.create_task(read())
    while not source.arguments:  # noqa: ASYNC110  # nothing tells of it
        await asyncio.sleep(0)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert source.ended.is_set()


async def test_a_query_that_nobody_reads_runs_nothing() -> None:
    source = Produced(lambda: numbers(5))
    results = await streams(source).query("source", {})
    await asyncio.sleep(0)
    assert source.arguments == []
    await results.batches.aclose()
    assert source.arguments == []


@pytest.mark.parametrize(
    ("error", "told"), [(ZeroDivisionError("a secret"), QueryFailed), (StorageFailure("gone"), StorageFailure)]
)
async def test_a_source_that_fails_is_told_behind_what_it_gave(
    error: Exception, told: type[Exception], caplog: pytest.LogCaptureFixture
) -> None:
    async def make() -> AsyncGenerator[RecordBatch, None]:
        for number in range(5):
            yield RecordBatch((b"%d" % number,))
        raise error

    got: list[bytes] = []
    batches = (await streams(Produced(make)).query("source", {})).batches

    async def read() -> None:
        async for batch in batches:
            got.extend(batch.data)

    with pytest.raises(told) as caught:
        await read()
    assert got == [b"%d" % number for number in range(5)]
    assert "secret" not in str(caught.value)
    assert any("secret" in str(record.exc_info) for record in caplog.records) == (told is QueryFailed)


async def test_a_server_that_goes_ends_queries() -> None:
    async def make() -> AsyncGenerator[RecordBatch, None]:
        yield RecordBatch((b"x",))
        await asyncio.Event().wait()

    source = Produced(make)
    server = streams(source)
    await server.start()
    batches = (await server.query("source", {})).batches
    await anext(batches)
    waiting = asyncio.ensure_future(anext(batches))
    await asyncio.sleep(0)
    await server.close()
    assert source.ended.is_set()
    with pytest.raises(GoingAway):
        await waiting
    with pytest.raises(GoingAway):
        await server.query("source", {})


# Functions.


async def everything(
    count: int, text: str = "t", *, flag: bool = False, number: float | None = None
) -> AsyncGenerator[Any, None]:
    for _ in range(count):
        yield {"text": text, "flag": flag, "number": number}
    yield b"bytes"
    yield "é"
    yield Record(b"with a key", "k")
    yield Record(b"without")
    yield RecordBatch([b"1", b"2"], ["one", None])


async def test_functions_are_sources() -> None:
    source = FunctionSource(everything)
    assert source.parameters == {"count": int, "text": str, "flag": bool, "number": float}
    assert source.required == {"count"}
    batches = await ask(source, count="1", flag="true")
    records = [record for batch in batches for record in batch.records()]
    assert json.loads(records[0].data) == {"text": "t", "flag": True, "number": None}
    assert [(record.data, record.key) for record in records[1:]] == [
        (b"bytes", None),
        ("é".encode(), None),
        (b"with a key", "k"),
        (b"without", None),
        (b"1", "one"),
        (b"2", None),
    ]
    bound = FunctionSource(functools.partial(everything, text="other"))
    assert json.loads((await ask(bound, count=1))[0].data[0])["text"] == "other"


async def test_a_function_is_closed_when_its_reader_leaves() -> None:
    ended = asyncio.Event()

    async def waits() -> AsyncGenerator[bytes, None]:
        try:
            yield b"x"
            await asyncio.Event().wait()
        finally:
            ended.set()

    batches = (await streams(FunctionSource(waits)).query("source", {})).batches
    await anext(batches)
    await batches.aclose()
    assert ended.is_set()


@pytest.mark.parametrize(
    "produced",
    [
        5,
        None,
        [1],
        Record("text"),  # type: ignore[arg-type]  # what a program may do
        {"odd": object()},
        {5: "no text"},
        RecordBatch([b"1", b"2"], ["one"]),
        RecordBatch([b"1"], [""]),
        RecordBatch([b"1"], ["k" * 256]),
        Record(b"", "\ud800"),
    ],
)
async def test_what_is_no_record_fails_the_query(produced: object, caplog: pytest.LogCaptureFixture) -> None:
    async def odd() -> AsyncGenerator[Any, None]:
        yield produced

    with pytest.raises(QueryFailed):
        await ask(FunctionSource(odd))
    assert any(record.exc_info for record in caplog.records)


async def test_a_record_that_is_too_large_is_told() -> None:
    largest = b"x" * (MAX_RECORD_SIZE - 1)
    assert await texts(Produced(lambda: given_batches([RecordBatch([largest], ["k"])]))) == [largest]
    for batch in (RecordBatch([largest], ["kk"]), RecordBatch([largest + b"xx"])):
        with pytest.raises(QueryFailed, match=str(MAX_RECORD_SIZE + 1)):
            await texts(Produced(functools.partial(given_batches, [batch])))


async def _several(*items: int) -> AsyncGenerator[bytes, None]:
    yield b""


async def _named(**items: int) -> AsyncGenerator[bytes, None]:
    yield b""


async def _bare(item) -> AsyncGenerator[bytes, None]:  # type: ignore[no-untyped-def]  # no annotation is the test
    yield b""


async def _odd(item: list[int]) -> AsyncGenerator[bytes, None]:
    yield b""


async def _either(item: int | str) -> AsyncGenerator[bytes, None]:
    yield b""


async def _positional(item: int, /) -> AsyncGenerator[bytes, None]:
    yield b""


async def _coroutine(item: int) -> bytes:
    return b""


@pytest.mark.parametrize("function", [_several, _named, _bare, _odd, _either, _positional, _coroutine, print, 5])
def test_what_cannot_be_a_source_is_refused(function: Any) -> None:
    with pytest.raises(ConfigurationError) as caught:
        FunctionSource(function)
    assert caught.value.field == "function"
