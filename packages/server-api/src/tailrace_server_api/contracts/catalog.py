"""What a catalog must do."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Mapping
from contextlib import AbstractAsyncContextManager
from pathlib import Path

import pytest
import pytest_asyncio

from tailrace_common_api import ListFilter, Metadata, ResourceState, Visibility
from tailrace_server_api import Catalog, CatalogEntry, ContextEntry, Descriptor, Usage


def _id(number: int) -> str:
    return f"{number:032d}"


def _entry(
    number: int,
    *,
    state: ResourceState = ResourceState.INITIATED,
    ended_at: float | None = None,
    labels: Mapping[str, str] | None = None,
    context: str | None = None,
    visibility: Visibility = Visibility.LIVE,
    principal: str = "",
    key: str | None = None,
    size: int = 0,
) -> CatalogEntry:
    """Return entry ``number``, created ``number`` seconds after the epoch."""
    return CatalogEntry(
        Descriptor(
            id=_id(number),
            metadata=Metadata(name=f"file-{number}", labels=labels or {}, context=context),
            visibility=visibility,
            created_at=float(number),
            token_hash=bytes(32),
            principal=principal,
            idempotency_key=key,
        ),
        state,
        ended_at,
        size,
    )


def _context(number: int, *, closed_at: float | None = None) -> ContextEntry:
    return ContextEntry(
        id=f"context-{number}", attributes={"number": str(number)}, created_at=float(number), closed_at=closed_at
    )


@pytest.mark.asyncio
class CatalogContract:
    """Subclass it, name the subclass ``Test…`` and implement the hooks."""

    def new_catalog(self, folder: Path) -> AbstractAsyncContextManager[Catalog]:
        """Return a context in which a started catalog exists, with what an earlier one left in ``folder``.

        It is closed at the end.
        """
        raise NotImplementedError

    persistent = True
    """Whether a catalog keeps its entries when it is closed and opened again."""

    @pytest_asyncio.fixture
    async def catalog(self, tmp_path: Path) -> AsyncGenerator[Catalog, None]:
        async with self.new_catalog(tmp_path) as catalog:
            yield catalog

    async def test_an_entry_comes_back_as_it_was_inserted(self, catalog: Catalog) -> None:
        entry = CatalogEntry(
            Descriptor(
                id=_id(1),
                metadata=Metadata(
                    name="Grüße 😀.log",
                    content_type="text/plain; charset=utf-8",
                    lines=True,
                    labels={"a": "", "b": "x'\"%_"},
                    context="run-1",
                ),
                visibility=Visibility.ATOMIC,
                created_at=1234.0625,
                token_hash=bytes(range(32)),
                principal="somebody",
                idempotency_key="key",
                length=2**53 - 1,
                sha256=bytes(range(32, 64)),
            ),
            ResourceState.FAILED,
            2345.5,
            2**53 - 1,
        )
        assert await catalog.insert(entry) is None
        assert await catalog.get(entry.descriptor.id) == entry

    async def test_nothing_is_found_of_what_is_not_there(self, catalog: Catalog) -> None:
        assert await catalog.get(_id(1)) is None
        assert await catalog.find_key("", "key") is None
        assert await catalog.list(ListFilter(), after=None, limit=10) == ()
        assert await catalog.unfinished() == ()
        assert await catalog.known() == frozenset()
        await catalog.set_state(_id(1), ResourceState.COMPLETED, 1.0)
        await catalog.delete(_id(1))
        assert await catalog.known() == frozenset()

    async def test_inserting_the_same_id_again_changes_nothing(self, catalog: Catalog) -> None:
        await catalog.insert(_entry(1, key="key"))
        await catalog.set_state(_id(1), ResourceState.COMPLETED, 5.0)
        assert await catalog.insert(_entry(1, key="key")) is None
        assert await catalog.insert(_entry(1, labels={"a": "b"})) is None
        found = await catalog.get(_id(1))
        assert found == _entry(1, key="key", state=ResourceState.COMPLETED, ended_at=5.0)
        assert await catalog.list(ListFilter(labels={"a": "b"}), after=None, limit=10) == ()

    async def test_a_key_is_taken_once_per_principal(self, catalog: Catalog) -> None:
        assert await catalog.insert(_entry(1, principal="a", key="key")) is None
        assert await catalog.insert(_entry(2, principal="b", key="key")) is None
        assert await catalog.insert(_entry(3, principal="a", key="other")) is None
        assert await catalog.insert(_entry(4, principal="a", key="key")) == _id(1)
        assert await catalog.get(_id(4)) is None
        assert await catalog.find_key("a", "key") == _entry(1, principal="a", key="key")
        assert await catalog.find_key("b", "key") == _entry(2, principal="b", key="key")
        assert await catalog.find_key("c", "key") is None

    async def test_a_key_is_free_again_after_its_resource_is_deleted(self, catalog: Catalog) -> None:
        await catalog.insert(_entry(1, key="key"))
        await catalog.delete(_id(1))
        assert await catalog.find_key("", "key") is None
        assert await catalog.insert(_entry(2, key="key")) is None

    async def test_many_may_have_no_key(self, catalog: Catalog) -> None:
        for number in range(3):
            assert await catalog.insert(_entry(number)) is None
        assert len(await catalog.known()) == 3

    async def test_only_one_of_many_at_once_gets_a_key(self, catalog: Catalog) -> None:
        holders = await asyncio.gather(*(catalog.insert(_entry(number, key="key")) for number in range(20)))
        winner = holders.index(None)
        assert [holder for holder in holders if holder is not None] == [_id(winner)] * 19
        assert await catalog.known() == {_id(winner)}

    async def test_a_terminal_state_is_never_replaced(self, catalog: Catalog) -> None:
        await catalog.insert(_entry(1))
        await catalog.set_state(_id(1), ResourceState.IN_PROGRESS, None)
        await catalog.set_state(_id(1), ResourceState.COMPLETED, 5.0, size=7)
        for state in ResourceState:
            await catalog.set_state(_id(1), state, 9.0, size=9)
        assert await catalog.get(_id(1)) == _entry(1, state=ResourceState.COMPLETED, ended_at=5.0, size=7)

    async def test_unfinished_are_those_without_a_terminal_state(self, catalog: Catalog) -> None:
        states = list(ResourceState)
        for number, state in enumerate(states):
            await catalog.insert(_entry(number, state=state, ended_at=1.0 if state.terminal else None))
        expected = {_id(number) for number, state in enumerate(states) if not state.terminal}
        assert set(await catalog.unfinished()) == expected

    async def test_pages_follow_one_another_without_hole_or_repeat(self, catalog: Catalog) -> None:
        for number in (5, 3, 9, 1, 7):
            await catalog.insert(_entry(number))
        found: list[str] = []
        after = None
        for _ in range(4):
            page = await catalog.list(ListFilter(), after=after, limit=2)
            found += [entry.descriptor.id for entry in page]
            if len(page) < 2:
                break
            after = page[-1].descriptor.id
        assert found == [_id(number) for number in (1, 3, 5, 7, 9)]

    async def test_a_page_may_start_behind_an_id_that_is_gone(self, catalog: Catalog) -> None:
        for number in (1, 2, 3):
            await catalog.insert(_entry(number))
        await catalog.delete(_id(2))
        page = await catalog.list(ListFilter(), after=_id(2), limit=10)
        assert [entry.descriptor.id for entry in page] == [_id(3)]

    @pytest.mark.parametrize(
        ("filter", "expected"),
        [
            (ListFilter(), {1, 2, 3, 4}),
            (ListFilter(labels={"kind": "log"}), {1, 2}),
            (ListFilter(labels={"kind": "log", "step": "test"}), {2}),
            (ListFilter(labels={"kind": "log", "step": "none"}), set()),
            (ListFilter(labels={"kind": "lo"}), set()),
            (ListFilter(context="a"), {2, 3}),
            (ListFilter(state=ResourceState.COMPLETED), {3, 4}),
            (ListFilter(state=ResourceState.FAILED), set()),
            (ListFilter(created_from=2.0), {2, 3, 4}),
            (ListFilter(created_before=2.0), {1}),
            (ListFilter(created_from=2.0, created_before=4.0), {2, 3}),
            (ListFilter(context="a", state=ResourceState.INITIATED), {2}),
            (ListFilter(labels={"kind": "video"}, context="a", state=ResourceState.COMPLETED, created_from=3.0), {3}),
        ],
    )
    async def test_a_filter_selects_what_meets_all_of_it(
        self, catalog: Catalog, filter: ListFilter, expected: set[int]
    ) -> None:
        completed = ResourceState.COMPLETED
        await catalog.insert(_entry(1, labels={"kind": "log"}))
        await catalog.insert(_entry(2, labels={"kind": "log", "step": "test"}, context="a"))
        await catalog.insert(_entry(3, labels={"kind": "video"}, context="a", state=completed, ended_at=8.0))
        await catalog.insert(_entry(4, context="b", state=completed, ended_at=9.0))
        page = await catalog.list(filter, after=None, limit=10)
        assert [entry.descriptor.id for entry in page] == sorted(_id(number) for number in expected)
        behind = await catalog.list(filter, after=_id(2), limit=10)
        assert [entry.descriptor.id for entry in behind] == sorted(_id(number) for number in expected if number > 2)
        assert await catalog.list(filter, after=None, limit=1) == page[:1]

    async def test_atomic_resources_are_listed_only_when_completed(self, catalog: Catalog) -> None:
        atomic = Visibility.ATOMIC
        await catalog.insert(_entry(1, visibility=atomic, labels={"a": "b"}, context="c"))
        await catalog.insert(_entry(2, visibility=atomic, labels={"a": "b"}, state=ResourceState.FAILED, ended_at=1.0))
        await catalog.insert(_entry(3, visibility=atomic, labels={"a": "b"}, context="c"))
        await catalog.set_state(_id(3), ResourceState.COMPLETED, 4.0)
        for selecting in (ListFilter(), ListFilter(labels={"a": "b"}), ListFilter(context="c")):
            page = await catalog.list(selecting, after=None, limit=10)
            assert [entry.descriptor.id for entry in page] == [_id(3)]
        assert await catalog.list(ListFilter(state=ResourceState.INITIATED), after=None, limit=10) == ()
        assert set(await catalog.unfinished()) == {_id(1)}

    async def test_what_ended_is_found_by_time_oldest_first(self, catalog: Catalog) -> None:
        for number, ended_at in ((1, 30.0), (2, 10.0), (3, 20.0), (4, 40.0)):
            await catalog.insert(_entry(number))
            await catalog.set_state(_id(number), ResourceState.COMPLETED, ended_at)
        await catalog.insert(_entry(5, state=ResourceState.FAILED, ended_at=1.0))
        await catalog.insert(_entry(6))
        completed = ResourceState.COMPLETED
        assert await catalog.ended_before(completed, 40.0, limit=10) == (_id(2), _id(3), _id(1))
        assert await catalog.ended_before(completed, 40.0, limit=2) == (_id(2), _id(3))
        assert await catalog.ended_before(completed, 10.0, limit=10) == ()
        assert await catalog.ended_before(ResourceState.FAILED, 40.0, limit=10) == (_id(5),)

    async def test_a_deleted_entry_is_found_nowhere(self, catalog: Catalog) -> None:
        await catalog.insert(_entry(1, labels={"a": "b"}, context="c", key="key"))
        await catalog.delete(_id(1))
        assert await catalog.get(_id(1)) is None
        assert await catalog.known() == frozenset()
        assert await catalog.unfinished() == ()
        for selecting in (ListFilter(), ListFilter(labels={"a": "b"}), ListFilter(context="c")):
            assert await catalog.list(selecting, after=None, limit=10) == ()
        # An entry under the same id starts anew, without the labels of the first.
        await catalog.insert(_entry(1))
        assert await catalog.list(ListFilter(labels={"a": "b"}), after=None, limit=10) == ()

    async def test_concurrent_changes_all_arrive(self, catalog: Catalog) -> None:
        async def live(number: int) -> None:
            await catalog.insert(_entry(number, labels={"parity": str(number % 2)}))
            assert await catalog.get(_id(number)) is not None
            await catalog.set_state(_id(number), ResourceState.COMPLETED, float(number))
            if number % 3 == 0:
                await catalog.delete(_id(number))

        await asyncio.gather(*(live(number) for number in range(300)))
        expected = [_id(number) for number in range(300) if number % 3]
        assert await catalog.known() == frozenset(expected)
        assert await catalog.unfinished() == ()
        page = await catalog.list(ListFilter(labels={"parity": "1"}), after=None, limit=1000)
        assert [entry.descriptor.id for entry in page] == [_id(n) for n in range(300) if n % 3 and n % 2]

    async def test_a_cancelled_caller_harms_nobody(self, catalog: Catalog) -> None:
        cancelled = asyncio.ensure_future(catalog.insert(_entry(1)))
        others = [asyncio.ensure_future(catalog.insert(_entry(number))) for number in range(2, 10)]
        await asyncio.sleep(0)
        cancelled.cancel()
        await asyncio.gather(*others)
        known = await catalog.known()
        assert known - {_id(1)} == {_id(number) for number in range(2, 10)}

    async def test_usage_sums_up_what_has_ended_by_context(self, catalog: Catalog) -> None:
        assert await catalog.usage() == ()
        completed, failed = ResourceState.COMPLETED, ResourceState.FAILED
        await catalog.insert(_entry(1, context="a"))
        await catalog.insert(_entry(2, context="a"))
        await catalog.insert(_entry(3, context="b", state=completed, ended_at=1.0, size=2**40))
        await catalog.insert(_entry(4, state=failed, ended_at=1.0, size=5))
        await catalog.insert(_entry(5, visibility=Visibility.ATOMIC))
        await catalog.set_state(_id(2), completed, 1.0, size=7)
        expected = {Usage("a", 2, 7), Usage("b", 1, 2**40), Usage(None, 2, 5)}
        assert set(await catalog.usage()) == expected
        await catalog.delete(_id(3))
        await catalog.delete(_id(4))
        await catalog.delete(_id(2))
        assert set(await catalog.usage()) == {Usage("a", 1, 0), Usage(None, 1, 0)}

    async def test_unfinished_are_found_by_context(self, catalog: Catalog) -> None:
        for number, context in ((1, "a"), (2, "a"), (3, "b"), (4, None), (5, "a")):
            await catalog.insert(_entry(number, context=context))
        await catalog.set_state(_id(1), ResourceState.IN_PROGRESS, None)
        await catalog.set_state(_id(2), ResourceState.FAILED, 1.0)
        assert set(await catalog.unfinished_in("a")) == {_id(1), _id(5)}
        assert await catalog.unfinished_in("b") == (_id(3),)
        assert await catalog.unfinished_in("c") == ()

    async def test_a_context_comes_back_as_it_was_inserted(self, catalog: Catalog) -> None:
        assert await catalog.get_context("context-1") is None
        entry = ContextEntry(id="context-1", attributes={"a": "", "b": "Grüße 😀 '\"%_"}, created_at=1234.0625)
        await catalog.insert_context(entry)
        assert await catalog.get_context("context-1") == entry
        await catalog.insert_context(_context(1, closed_at=2.0))
        assert await catalog.get_context("context-1") == entry

    async def test_the_first_closing_of_a_context_stays(self, catalog: Catalog) -> None:
        await catalog.close_context("context-1", 1.0)
        assert await catalog.get_context("context-1") is None
        for number in (1, 2):
            await catalog.insert_context(_context(number))
        await catalog.insert_context(_context(3, closed_at=3.0))
        assert await catalog.open_contexts() == 2
        await catalog.close_context("context-1", 5.0)
        await catalog.close_context("context-1", 6.0)
        assert await catalog.get_context("context-1") == _context(1, closed_at=5.0)
        assert await catalog.open_contexts() == 1

    async def test_only_empty_contexts_that_were_closed_long_ago_are_removed(self, catalog: Catalog) -> None:
        for number, closed_at in ((1, 10.0), (2, 20.0), (3, 30.0), (4, None), (5, 11.0), (6, 12.0)):
            await catalog.insert_context(_context(number, closed_at=closed_at))
        await catalog.insert(_entry(1, context="context-1"))
        assert await catalog.delete_empty_contexts(10.0, limit=10) == ()
        assert len(await catalog.delete_empty_contexts(30.0, limit=2)) == 2
        assert len(await catalog.delete_empty_contexts(30.0, limit=2)) == 1
        left = [number for number in range(1, 7) if await catalog.get_context(f"context-{number}") is not None]
        assert left == [1, 3, 4]
        await catalog.delete(_id(1))
        assert await catalog.delete_empty_contexts(30.0, limit=10) == ("context-1",)
        assert await catalog.open_contexts() == 1

    async def test_entries_outlive_the_catalog_object(self, tmp_path: Path) -> None:
        entry = _entry(1, labels={"a": "b"}, key="key", state=ResourceState.COMPLETED, ended_at=2.0)
        closed = _context(1, closed_at=2.0)
        async with self.new_catalog(tmp_path) as catalog:
            await catalog.insert(entry)
            await catalog.insert_context(_context(1))
            await catalog.close_context(closed.id, 2.0)
        async with self.new_catalog(tmp_path) as catalog:
            expected = (entry,) if self.persistent else ()
            assert await catalog.get_context(closed.id) == (closed if self.persistent else None)
            assert await catalog.list(ListFilter(labels={"a": "b"}), after=None, limit=10) == expected

    async def test_closing_is_idempotent(self, tmp_path: Path) -> None:
        async with self.new_catalog(tmp_path) as catalog:
            await catalog.close()
            await catalog.close()
