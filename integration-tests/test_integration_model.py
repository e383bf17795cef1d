"""Random interleavings of uploaders, zombies, readers, crashes and restarts, beside a model of what must hold.

The storage is the real one, on disk; every message passes through a real codec. The model of a resource is what its
source holds, how much of it was sent, what somebody has been told, its epoch and how it ended. After every step the
bytes that anybody got are compared with the source, and no announced size may ever go back.
"""

from __future__ import annotations

import asyncio
import random
import shutil
from collections import Counter
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from codec_connections import Codec, CodecConnection
from conversations import Conversation, HandUpload
from manifest import proves
from soak import SEED, SOAK

from tailrace_common_api import (
    Fenced,
    FromOffset,
    IntegrityError,
    NotFound,
    ProtocolError,
    RangeNotSatisfiable,
    ResourceState,
    TailraceError,
    WrongOffset,
)
from tailrace_impl_common import ConnectedClient, HeadHasher
from tailrace_impl_common.messages import Chunk, End, Finished, Follow, Opened, ReopenUpload, Started
from tailrace_impl_server import ManagedServer, create_manager

STEPS = 20_000 if SOAK else 1_500
SEEDS = range(1000 * SEED, 1000 * SEED + (8 if SOAK else 4))
LARGEST = 600_000
"""Most bytes of a source: a few blocks, so that all kinds of ends occur."""
MOST_RESOURCES = 5
OPTIONS = {"upload_grace": 3600, "upload_window": 256 * 1024, "chunk_size": 200_000}


@dataclass
class Follower:
    """Somebody who reads from an offset on."""

    conversation: Conversation
    offset: int


@dataclass
class Model:
    """What must hold of one resource."""

    id: str
    token: str
    source: bytes
    session: HandUpload | None
    epoch: int
    sent: int = 0
    told: int = 0
    version: int = 0
    ended: ResourceState | None = None
    zombies: list[HandUpload] = field(default_factory=list)
    followers: list[Follower] = field(default_factory=list)

    def head(self, size: int) -> bytes:
        """Return the head of the first bytes of the source."""
        hasher = HeadHasher()
        hasher.update(self.source[:size])
        return hasher.head()


class World:
    """A server, the models of its resources, and the steps that change both."""

    def __init__(self, seed: int, folder: Path, codec: Codec) -> None:
        self.random = random.Random(seed)
        self.folder = folder
        self.codec = codec
        self.life = 0
        self.models: list[Model] = []
        self.done: Counter[str] = Counter()
        self.trail: list[str] = []
        self.server: ManagedServer
        self.connection: CodecConnection
        self.client: ConnectedClient

    @property
    def data(self) -> Path:
        return self.folder / f"life-{self.life}"

    async def start(self) -> None:
        self.server = create_manager(self.data, OPTIONS)
        await self.server.start()
        self.connection = CodecConnection(self.server.manager, self.codec)
        self.client = ConnectedClient(self.connection)

    async def stop(self) -> None:
        for model in self.models:
            for conversation in [*model.zombies, *(follower.conversation for follower in model.followers)]:
                await conversation.close()
            if model.session is not None:
                await model.session.close()
            model.session = None
            model.zombies.clear()
        await self.connection.close()
        await self.server.close()

    async def run(self, steps: int) -> None:
        kinds: list[tuple[Callable[[], Awaitable[None]], int]] = [
            (self.open, 6),
            (self.send, 40),
            (self.settle, 14),
            (self.reopen, 10),
            (self.cut, 4),
            (self.zombie, 10),
            (self.mistake, 4),
            (self.finish, 3),
            (self.abort, 1),
            (self.expire, 1),
            (self.delete, 1),
            (self.follow, 8),
            (self.pump, 40),
            (self.range_read, 20),
            (self.look, 20),
            (self.crash, 2),
            (self.restart, 1),
        ]
        steps_of, weights = [kind for kind, _ in kinds], [weight for _, weight in kinds]
        await self.start()
        try:
            for _ in range(steps):
                (step,) = self.random.choices(steps_of, weights)
                self.trail.append(step.__name__)
                async with asyncio.timeout(60):
                    await step()
                self.done[step.__name__] += 1
        finally:
            await self.stop()

    # What is common to steps

    def pick(self, *, open_only: bool = False) -> Model | None:
        candidates = [model for model in self.models if not (open_only and model.ended)]
        return self.random.choice(candidates) if candidates else None

    def told(self, model: Model, size: int, head: bytes) -> None:
        """Somebody was told a size: it must be a prefix of the source, and is never taken back."""
        assert model.told <= size <= model.sent, (model.told, size, model.sent)
        assert head == model.head(size)
        model.told = size

    async def look_at(self, model: Model) -> None:
        status = await self.client.status(model.id)
        self.told(model, status.size, status.head)
        assert status.version >= model.version
        model.version = status.version
        if model.ended is not None:
            assert status.state is model.ended
        else:
            assert not status.state.terminal
            assert (status.state is ResourceState.INITIATED) <= (status.size == 0)

    async def lose(self, session: HandUpload, *kinds: type[TailraceError]) -> None:
        """See a session end with an error of one of ``kinds``."""
        error = await session.error()
        assert isinstance(error, kinds), repr(error)
        await session.close()

    # Steps of uploaders

    async def open(self) -> None:
        if len(self.models) >= MOST_RESOURCES:
            return
        source = self.random.randbytes(self.random.choice([0, 1, 5_000, 131_072, 262_144, LARGEST]))
        session = await HandUpload.open(self.connection, lines=True)
        assert session.offset == 0
        self.models.append(Model(session.id, session.token, source, session, session.opened.epoch))

    async def send(self) -> None:
        model = self.pick(open_only=True)
        if model is None or model.session is None:
            return
        session = model.session
        size = self.random.choice([1, 7, 100, 4_096, 70_000, 131_072, 200_000])
        end = min(session.offset + size, session.until, len(model.source))
        if end > session.offset:
            data = model.source[session.offset : end]
            model.sent = max(model.sent, end)
            await session.chunk(data)

    async def settle(self) -> None:
        model = self.pick(open_only=True)
        if model is None or model.session is None:
            return
        checkpoint = await model.session.announced(model.session.offset)
        self.told(model, checkpoint.size, checkpoint.head)
        # The window is renewed as soon as a quarter of it is free.
        quarter = OPTIONS["upload_window"] // 4
        await model.session.granted(min(len(model.source), checkpoint.size + 3 * quarter))

    async def reopen(self) -> None:
        model = self.pick()
        if model is None:
            return
        if model.session is not None and not model.ended:
            model.zombies.append(model.session)
        # The session that ends announces what it has, or cuts it: no more than was sent.
        session = await HandUpload.begin(self.connection, ReopenUpload(id=model.id, token=model.token))
        opened = await session.receive(Opened)
        if model.ended is not None:
            assert opened.status.state is model.ended
            assert not opened.token
            await session.close()
            return
        assert opened.epoch > model.epoch
        self.told(model, opened.offset, opened.head)
        await session.close()
        model.session = None
        taken = await HandUpload.reopen(self.connection, model.id, model.token, model.source[: opened.offset])
        assert taken.offset == opened.offset
        assert taken.opened.epoch > opened.epoch
        model.session, model.epoch = taken, taken.opened.epoch
        model.sent = taken.offset
        if self.random.random() < 0.5:
            # What was never announced need not come again: stale bytes of it must not either.
            more = self.random.choice([0, 1, 140_000, LARGEST])
            model.source = model.source[: taken.offset] + self.random.randbytes(min(more, LARGEST - taken.offset))
        while len(model.zombies) > 2:
            await model.zombies.pop(0).close()

    async def cut(self) -> None:
        model = self.pick(open_only=True)
        if model is not None and model.session is not None:
            await model.session.close()
            model.session = None

    async def zombie(self) -> None:
        """A deposed session goes on with bytes of its own, and with a finish: nothing changes, and it is told."""
        model = self.pick()
        if model is None or not model.zombies:
            return
        zombie = model.zombies.pop()
        try:
            if self.random.random() < 0.5:
                await zombie.chunk(b"not of the source")
            else:
                await zombie.finish()
        except Fenced:
            pass
        await self.lose(zombie, Fenced)
        await self.look_at(model)

    async def mistake(self) -> None:
        """An uploader sends what cannot follow: it is refused, and the upload can go on."""
        model = self.pick(open_only=True)
        if model is None or model.session is None:
            return
        session, model.session = model.session, None
        data = b"x" * min(10, session.until - session.offset)
        if not data:
            await session.close()
            return
        kind = self.random.randrange(4)
        if kind == 0:
            await session.send(session.make(data, offset=session.offset + 1))
            await self.lose(session, WrongOffset)
        elif kind == 1:
            await session.send(session.make(data, hash=bytes(8)))
            await self.lose(session, IntegrityError)
        elif kind == 2:
            await session.send(session.make(data, previous=b"previous"))
            await self.lose(session, IntegrityError)
        else:
            await session.send(session.make(bytes(OPTIONS["chunk_size"] + 1)))
            await self.lose(session, ProtocolError)
        await self.look_at(model)

    async def finish(self) -> None:
        model = self.pick(open_only=True)
        if model is None or model.session is None:
            return
        session, model.session = model.session, None
        kind = self.random.randrange(4)
        if kind == 0:
            await session.finish(size=session.offset + 1)
            await self.lose(session, IntegrityError)
            await self.look_at(model)
        elif kind == 1 and session.offset:
            await session.finish(head=bytes(16))
            await self.lose(session, IntegrityError)
            model.ended = ResourceState.FAILED
            await self.look_at(model)
        else:
            await session.finish()
            finished = await session.receive(Finished)
            await session.close()
            assert finished.status is not None
            assert finished.status.state is ResourceState.COMPLETED
            model.ended = ResourceState.COMPLETED
            assert finished.status.size == session.offset == model.sent
            self.told(model, finished.status.size, finished.status.head)

    async def abort(self) -> None:
        model = self.pick(open_only=True)
        if model is None or model.session is None:
            return
        session, model.session = model.session, None
        finished = await session.abort("given up")
        assert finished.status is not None
        assert finished.status.reason == "given up"
        model.ended = ResourceState.FAILED
        self.told(model, finished.status.size, finished.status.head)

    async def expire(self) -> None:
        """The grace of a lost uploader is over."""
        model = self.pick(open_only=True)
        if model is None or model.session is not None:
            return
        await self.server.manager.expire(model.id, None)  # type: ignore[attr-defined]  # what its sweeper calls
        model.ended = ResourceState.FAILED
        assert (await self.client.status(model.id)).reason == "uploader lost"
        await self.look_at(model)

    async def delete(self) -> None:
        model = self.pick()
        if model is None:
            return
        self.models.remove(model)
        await self.client.delete(model.id)
        with pytest.raises(NotFound):
            await self.client.status(model.id)
        for follower in model.followers:
            if model.ended is None:
                assert isinstance(await follower.conversation.error(), NotFound)
            await follower.conversation.close()
        for session in [*model.zombies, *([model.session] if model.session else [])]:
            await session.close()
        assert not (self.data / "resources" / model.id).exists()

    # Steps of readers

    async def follow(self) -> None:
        model = self.pick()
        if model is None or len(model.followers) >= 3:
            return
        model.followers.append(await self._followed(model, self.random.randint(0, model.told)))

    async def _followed(self, model: Model, offset: int) -> Follower:
        conversation = await Conversation.begin(self.connection, Follow(id=model.id, start=FromOffset(offset)))
        started = await conversation.receive(Started)
        assert started.offset == offset
        self.told(model, started.status.size, started.status.head)
        return Follower(conversation, offset)

    async def pump(self) -> None:
        """A follower takes its next message, if there must be one."""
        model = self.pick()
        if model is None or not model.followers:
            return
        follower = self.random.choice(model.followers)
        if follower.offset >= model.told and model.ended is None:
            return
        message = await follower.conversation.stream.receive()
        if isinstance(message, Chunk):
            assert message.offset == follower.offset
            assert bytes(message.data) == model.source[follower.offset : message.end]
            follower.offset = message.end
            if message.checkpoint is not None:
                assert message.checkpoint.size == message.end
                self.told(model, max(model.told, message.end), model.head(max(model.told, message.end)))
                assert message.checkpoint.head == model.head(message.end)
            assert message.end <= model.sent
            return
        assert isinstance(message, End), message
        assert message.status.state is model.ended
        assert message.offset == follower.offset == message.status.size == model.told
        model.followers.remove(follower)
        await follower.conversation.close()

    async def range_read(self) -> None:
        model = self.pick()
        if model is None:
            return
        start = self.random.randint(0, model.told)
        end = self.random.randint(start, min(model.told, start + 300_000))
        if self.random.random() < 0.1:
            end = LARGEST + 1
            with pytest.raises(RangeNotSatisfiable) as caught:
                await self.client.open(model.id).read(start, end)
            assert model.told <= caught.value.size <= model.sent
            return
        assert await self.client.open(model.id).read(start, end) == model.source[start:end]

    async def look(self) -> None:
        model = self.pick()
        if model is not None:
            await self.look_at(model)

    # Steps of the server

    async def crash(self) -> None:
        """The server is killed: what is in its files at this moment is all that the next one has."""
        killed = self.data
        self.life += 1
        _copy_as_it_is(killed, self.data)
        await self.stop()
        shutil.rmtree(killed)
        await self._revive()

    async def restart(self) -> None:
        await self.stop()
        await self._revive()

    async def _revive(self) -> None:
        await self.start()
        for model in self.models:
            await self.look_at(model)
            # The uploader goes on from what is there; nothing beyond it was told to anyone.
            model.sent = model.told
            model.followers = [await self._followed(model, follower.offset) for follower in model.followers]


def _copy_as_it_is(source: Path, target: Path) -> None:
    """Copy a data folder under a running server, without its catalog, which is made again from the rest.

    The event loop stands still meanwhile, so nothing is announced; the writers' threads may go on. Of each resource the
    journal is copied first: what it says is stored is then in the data.
    """
    (target / "resources").mkdir(parents=True)
    shutil.copyfile(source / "format", target / "format")
    for folder in (source / "resources").iterdir():
        copy = target / "resources" / folder.name
        copy.mkdir()
        for name in ("resource.json", "journal", "data"):
            shutil.copyfile(folder / name, copy / name)


@proves("RES-5", "UPL-9", "UPL-10", "UPL-12", "CHK-3", "DWN-4")
@pytest.mark.timeout(1800 if SOAK else 400)
@pytest.mark.parametrize("codec", Codec, ids=lambda codec: codec.value)
@pytest.mark.parametrize("seed", SEEDS)
async def test_interleavings_keep_what_was_announced(seed: int, codec: Codec, tmp_path: Path) -> None:
    world = World(seed, tmp_path, codec)
    try:
        await world.run(STEPS)
    except BaseException:
        print(f"seed {seed}, step {len(world.trail)}: {' '.join(world.trail[-40:])}")
        raise
    assert min(world.done[step] for step in ("crash", "restart", "zombie", "finish", "reopen", "pump")) > 0
