"""The account of quotas never drifts from the truth, whatever happens."""

import random
from contextlib import suppress

import pytest
from impl_server_manager_bench import Bench, Uploader

from tailrace_common_api import Metadata, QuotaExceeded, TailraceError, Visibility
from tailrace_impl_common import chunk_hash
from tailrace_impl_server import Manager


class Model:
    """Random uploads, and what they must come to."""

    def __init__(self, bench: Bench, manager: Manager, chance: random.Random) -> None:
        self.bench = bench
        self.manager = manager
        self.chance = chance
        self.open: dict[str, tuple[Uploader, Metadata]] = {}
        self.lost: dict[str, tuple[str, bytes, Metadata]] = {}
        self.ended: dict[str, Metadata] = {}
        self.contexts: list[str | None] = [None]

    async def step(self) -> None:
        operation = self.chance.choice(
            (
                *(self.create, self.create, self.send, self.send, self.send, self.finish, self.abort, self.leave),
                *(self.reopen, self.delete, self.new_context, self.close_context),
            )
        )
        with suppress(QuotaExceeded):
            await operation()

    async def new_context(self) -> None:
        if len(self.contexts) < 4:
            self.contexts.append((await self.manager.create_context({})).id)

    async def close_context(self) -> None:
        closed = self.chance.choice(self.contexts)
        if closed is None or self.chance.random() < 0.5:
            return
        self.contexts.remove(closed)
        await self.manager.close_context(closed)
        for one, (uploader, metadata) in list(self.open.items()):
            if metadata.context == closed:
                await uploader.ingest.release()
                del self.open[one]
                self.ended[one] = metadata
        for one, (_, _, metadata) in list(self.lost.items()):
            if metadata.context == closed:
                del self.lost[one]
                self.ended[one] = metadata

    async def create(self) -> None:
        metadata = Metadata(name="x", context=self.chance.choice(self.contexts))
        atomic = self.chance.random() < 0.3
        ingest = await self.manager.create(
            metadata,
            visibility=Visibility.ATOMIC if atomic else Visibility.LIVE,
            length=self.chance.choice([None, None, 3000]),
        )
        self.open[ingest.id] = (Uploader(ingest), metadata)

    def pick(self) -> tuple[str, Uploader, Metadata] | None:
        if not self.open:
            return None
        one = self.chance.choice(list(self.open))
        return (one, *self.open[one])

    async def send(self) -> None:
        picked = self.pick()
        if picked is None:
            return
        one, uploader, metadata = picked
        data = bytes(min(self.chance.randrange(1, 4000), uploader.ingest.progress.until - uploader.size))
        if not data:
            return
        try:
            uploader.ingest.submit(data, hash=chunk_hash(data))
        except QuotaExceeded:
            await self.forget_session(one)
            raise
        except TailraceError:
            # More than was declared.
            await uploader.ingest.release()
            del self.open[one]
            self.ended[one] = metadata
            return
        uploader._hasher.update(data)
        uploader._offset += len(data)
        await uploader.announced()

    async def forget_session(self, one: str) -> None:
        uploader, metadata = self.open.pop(one)
        await uploader.ingest.release()
        self.lost[one] = (uploader.ingest.token, bytes(uploader.size), metadata)

    async def finish(self) -> None:
        picked = self.pick()
        if picked is not None:
            one, uploader, metadata = picked
            del self.open[one]
            self.ended[one] = metadata
            try:
                await uploader.finish()
            except TailraceError:
                # Less than was declared.
                await uploader.ingest.release()

    async def abort(self) -> None:
        picked = self.pick()
        if picked is not None:
            one, uploader, metadata = picked
            del self.open[one]
            self.ended[one] = metadata
            await uploader.ingest.abort("enough")

    async def leave(self) -> None:
        picked = self.pick()
        if picked is not None:
            await self.forget_session(picked[0])

    async def reopen(self) -> None:
        if self.lost:
            one = self.chance.choice(list(self.lost))
            token, data, metadata = self.lost.pop(one)
            self.open[one] = (Uploader(await self.manager.reopen(one, token), data), metadata)

    async def delete(self) -> None:
        known = [*self.ended]
        if known:
            one = self.chance.choice(known)
            del self.ended[one]
            try:
                await self.manager.delete(one)
            except TailraceError:
                # An atomic one that did not complete.
                return

    async def restart(self, options: dict[str, object]) -> None:
        for one in list(self.open):
            await self.forget_session(one)
        self.manager = await self.bench.restart(**options)

    async def check(self) -> None:
        """Compare the account with what the storage has."""
        sizes: dict[str | None, list[int]] = {}
        unfinished = 0
        for one in await self.bench.catalog.known():
            snapshot = await self.bench.storage.load(one)
            context = (await self.bench.storage.describe(one)).metadata.context
            sizes.setdefault(context, []).append(snapshot.size)
            unfinished += not snapshot.state.terminal
        quotas = self.manager._parts.quotas
        assert quotas.uploads == unfinished == len(self.open) + len(self.lost)
        everything = [size for found in sizes.values() for size in found]
        assert quotas.storage_bytes == sum(everything)
        assert set(quotas._contexts) == {context for context in sizes if context is not None}
        for context, scope in quotas._contexts.items():
            assert (scope.resources, scope.announced) == (len(sizes[context]), sum(sizes[context]))
        charges = list(quotas._unfinished.values())
        for scope in (quotas._storage, *quotas._contexts.values()):
            own = [charge.figures for charge in charges if scope in charge._scopes]
            assert scope.used - scope.announced == sum(used - announced for announced, used, _ in own)
            assert scope.reserved == sum(reserved for _, _, reserved in own)
            assert scope.used + scope.reserved <= scope.maximum
        for scope in (quotas._storage, *quotas._contexts.values()):
            assert scope.used == scope.announced


@pytest.mark.parametrize("seed", range(6))
async def test_the_account_never_drifts_from_the_truth(bench: Bench, seed: int) -> None:
    options: dict[str, object] = {
        "max_storage_bytes": 60_000,
        "max_context_bytes": 15_000,
        "max_context_resources": 8,
        "max_uploads": 10,
        "upload_window": 8192,
        "upload_grace": 3600,
    }
    model = Model(bench, await bench.start(**options), random.Random(seed))
    for number in range(150):
        await model.step()
        await model.check()
        if bench.path is not None and number % 50 == 49:
            await model.restart(options)
            await model.check()
