"""Authenticators and authorizers of one's own: whom they let in, and that none of their failures lets anybody in."""

import logging
from collections.abc import AsyncGenerator, Callable
from pathlib import Path
from typing import Any

import pytest

from tailrace_common_api import (
    ConfigurationError,
    InternalError,
    ListFilter,
    Metadata,
    NotFound,
    PermissionDenied,
    StorageFailure,
    Unauthenticated,
)
from tailrace_impl_common import EMPTY_HEAD, current_caller
from tailrace_impl_server import ManagedServer, create_manager
from tailrace_server_api import (
    Authenticator,
    Authorizer,
    Credentials,
    Operation,
    Principal,
    ResourceManager,
    ResourceService,
)

SECRET = "the database is at db.internal"


class Doors(Authenticator):
    """Knows whoever is in ``known`` by name, and does what a test has put in."""

    def __init__(self) -> None:
        self.known: dict[str, Principal] = {"alice": Principal(name="alice"), "bob": Principal(name="bob")}
        self.error: BaseException | None = None
        self.answer: Any = ...
        self.started = self.closed = 0

    async def start(self) -> None:
        self.started += 1

    async def close(self) -> None:
        self.closed += 1

    async def authenticate(self, credentials: Credentials) -> Principal:
        if self.error is not None:
            raise self.error
        if self.answer is not ...:
            return self.answer  # type: ignore[no-any-return]  # what no type checker saw
        principal = self.known.get(credentials.token or "")
        if principal is None:
            raise Unauthenticated("who are you?")
        return principal


class Rules(Authorizer):
    """Remembers what it was asked, refuses what is in ``refused``, and fails where a test says so."""

    def __init__(self) -> None:
        self.asked: list[tuple[str, Operation, str | None, str | None]] = []
        self.refused: dict[Operation, BaseException] = {}

    async def authorize(
        self, principal: Principal, operation: Operation, *, context: str | None, id: str | None
    ) -> None:
        self.asked.append((principal.name, operation, context, id))
        if operation in self.refused:
            raise self.refused[operation]


async def _store(service: ResourceService, **metadata: Any) -> str:
    ingest = await service.create(Metadata(name="a", **metadata))
    await ingest.finish(size=0, head=EMPTY_HEAD)
    return ingest.id


async def _status(service: ResourceService, id: str) -> None:
    async for _ in service.statuses(id):
        break


async def _read(service: ResourceService, id: str) -> None:
    (await service.open_reader(id)).close()


CALLS: dict[str, tuple[Operation, Callable[[ResourceService, str], Any]]] = {
    "create": (Operation.UPLOAD, lambda service, made: service.create(Metadata(name="b"))),
    "reopen": (Operation.UPLOAD, lambda service, made: service.reopen(made, "token")),
    "read": (Operation.READ, _read),
    "watch": (Operation.READ, _status),
    "heads": (Operation.READ, lambda service, made: service.heads(made, [0])),
    "list": (Operation.LIST, lambda service, made: service.list(ListFilter(), limit=5)),
    "delete": (Operation.DELETE, lambda service, made: service.delete(made)),
    "create context": (Operation.CONTEXTS, lambda service, made: service.create_context({})),
}


@pytest.fixture
def doors() -> Doors:
    return Doors()


@pytest.fixture
def rules() -> Rules:
    return Rules()


@pytest.fixture
async def manager(doors: Doors, rules: Rules) -> AsyncGenerator[ResourceManager, None]:
    async with create_manager(None, {}, authenticator=doors, authorizer=rules) as server:
        yield server.manager


async def test_an_authenticator_of_ones_own_is_started_asked_and_closed(doors: Doors) -> None:
    async with create_manager(None, {}, authenticator=doors) as server:
        assert (doors.started, doors.closed) == (1, 0)
        assert not server.manager.anonymous
        alice = await server.manager.authenticate(Credentials(token="alice", peer="there"))
        assert current_caller() == {"peer": "there", "principal": "alice"}
        await _store(alice)
        for nobody in (Credentials(), Credentials(token="mallory"), Credentials(certificate_names=("alice",))):
            with pytest.raises(Unauthenticated, match="who are you"):
                await server.manager.authenticate(nobody)
    assert (doors.started, doors.closed) == (1, 1)


@pytest.mark.parametrize("error", [ValueError(SECRET), KeyError(SECRET), AssertionError(SECRET), TimeoutError(SECRET)])
async def test_an_authenticator_that_fails_lets_nobody_in(
    doors: Doors, manager: ResourceManager, caplog: pytest.LogCaptureFixture, error: Exception
) -> None:
    doors.error = error
    for ask in (manager.authenticate, manager.authorize_metrics):
        caplog.clear()
        with pytest.raises(InternalError) as refused:
            await ask(Credentials(token="alice", peer="there"))
        assert SECRET not in str(refused.value)
        (record,) = [record for record in caplog.records if record.levelno >= logging.ERROR]
        assert record.exc_info is not None
        assert record.exc_info[1] is error


@pytest.mark.parametrize("answer", [None, True, "alice", ("alice",), Principal])
async def test_what_is_no_principal_is_not_let_in(
    doors: Doors, caplog: pytest.LogCaptureFixture, answer: object
) -> None:
    # Without an authorizer nobody but the guard stands behind it.
    async with create_manager(None, {}, authenticator=doors) as server:
        doors.answer = answer
        for ask in (server.manager.authenticate, server.manager.authorize_metrics):
            with pytest.raises(InternalError):
                await ask(Credentials(token="alice"))
    assert "which is no principal" in caplog.text


async def test_an_authenticator_that_cannot_start_starts_no_server(doors: Doors) -> None:
    async def fail() -> None:
        raise ConfigurationError(field="doors", problem="locked")

    doors.start = fail  # type: ignore[method-assign]  # stands in for the method
    server = create_manager(None, {}, authenticator=doors)
    with pytest.raises(ConfigurationError, match="locked"):
        await server.start()
    await server.close()
    assert doors.closed


@pytest.mark.parametrize("call", CALLS)
async def test_an_authorizer_is_asked_before_anything_is_done(
    manager: ResourceManager, rules: Rules, call: str
) -> None:
    context = (await manager.create_context({})).id
    made = await _store(manager, context=context)
    alice = await manager.authenticate(Credentials(token="alice"))
    operation, act = CALLS[call]
    before = (await manager.list(ListFilter(), limit=10)).statuses
    rules.refused[operation] = PermissionDenied("not today")
    with pytest.raises(PermissionDenied, match="not today"):
        await act(alice, made)
    assert (await manager.list(ListFilter(), limit=10)).statuses == before
    of_resource = call in ("reopen", "read", "watch", "heads", "delete")
    assert rules.asked == [("alice", operation, context if of_resource else None, made if of_resource else None)]


@pytest.mark.parametrize("call", CALLS)
async def test_an_authorizer_that_fails_allows_nothing(
    manager: ResourceManager, rules: Rules, caplog: pytest.LogCaptureFixture, call: str
) -> None:
    made = await _store(manager)
    alice = await manager.authenticate(Credentials(token="alice"))
    operation, act = CALLS[call]
    rules.refused[operation] = ValueError(SECRET)
    with pytest.raises(InternalError) as refused:
        await act(alice, made)
    assert SECRET not in str(refused.value)
    (record,) = [record for record in caplog.records if record.levelno >= logging.ERROR]
    assert (record.exc_info or (None, None))[1] is rules.refused[operation]
    assert [status.id for status in (await manager.list(ListFilter(), limit=10)).statuses] == [made]


async def test_an_authorizer_without_an_authenticator_is_asked_for_everybody(rules: Rules) -> None:
    async with create_manager(None, {}, authorizer=rules) as server:
        service = await server.manager.authenticate(Credentials())
        await _store(service)
        rules.refused[Operation.READ] = NotFound(id="0" * 32)
        with pytest.raises(NotFound):
            await _read(service, "0" * 32)
        await server.manager.authorize_metrics(Credentials())
        rules.refused[Operation.METRICS] = PermissionDenied("no")
        with pytest.raises(PermissionDenied):
            await server.manager.authorize_metrics(Credentials())
    assert {name for name, _, _, _ in rules.asked} == {""}


async def test_metrics_need_their_scope(doors: Doors) -> None:
    async with create_manager(None, {}, authenticator=doors) as server:
        doors.known = {
            "none": Principal(name="none", operations=frozenset(Operation) - {Operation.METRICS}),
            "only": Principal(name="only", operations=frozenset({Operation.METRICS})),
            "bound": Principal(name="bound", context="0" * 32),
        }
        await server.manager.authorize_metrics(Credentials(token="only", peer="there"))
        assert current_caller() == {"peer": "there", "principal": "only"}
        with pytest.raises(PermissionDenied, match="metrics"):
            await server.manager.authorize_metrics(Credentials(token="none"))
        # The figures are those of all contexts.
        with pytest.raises(PermissionDenied, match="only within context"):
            await server.manager.authorize_metrics(Credentials(token="bound"))
        with pytest.raises(Unauthenticated):
            await server.manager.authorize_metrics(Credentials())


async def test_keys_of_one_principal_are_unknown_to_another_one(manager: ResourceManager) -> None:
    alice = await manager.authenticate(Credentials(token="alice"))
    bob = await manager.authenticate(Credentials(token="bob"))
    first = await alice.create(Metadata(name="a"), idempotency_key="nightly")
    other = await bob.create(Metadata(name="of bob"), idempotency_key="nightly")
    assert other.id != first.id
    assert (await alice.create(Metadata(name="a"), idempotency_key="nightly")).id == first.id


async def test_a_bound_principal_lists_its_context_only(doors: Doors) -> None:
    async with create_manager(None, {}, authenticator=doors) as server:
        manager = server.manager
        mine, other = [(await manager.create_context({})).id for _ in range(2)]
        within = await _store(manager, context=mine)
        await _store(manager, context=other)
        await _store(manager)
        doors.known["bound"] = Principal(name="bound", context=mine)
        bound = await manager.authenticate(Credentials(token="bound"))
        for context, found in ((None, [within]), (mine, [within]), (other, []), ("0" * 32, [])):
            page = await bound.list(ListFilter(context=context), limit=10)
            assert [status.id for status in page.statuses] == found
            assert page.next_token is None
        doors.known["bound"] = Principal(name="bound", context=mine, operations=frozenset({Operation.READ}))
        unlisted = await manager.authenticate(Credentials(token="bound"))
        for context in (None, mine, other):
            with pytest.raises(PermissionDenied, match="list"):
                await unlisted.list(ListFilter(context=context), limit=10)


async def _damaged(server: ManagedServer, data: Path, **metadata: Any) -> str:
    """Store a resource of which nothing can be read."""
    made = await _store(server.manager, **metadata)
    (folder,) = [path for path in data.rglob(made) if path.is_dir()]
    for file in folder.iterdir():
        if file.name != "data":
            file.write_bytes(b"\xff" * 64)
    return made


async def test_damaged_resources_of_others_do_not_exist(tmp_path: Path, doors: Doors) -> None:
    async with create_manager(tmp_path / "data", {}, authenticator=doors) as server:
        mine, other = [(await server.manager.create_context({})).id for _ in range(2)]
        within = await _damaged(server, tmp_path / "data", context=mine)
        outside = [await _damaged(server, tmp_path / "data", context=context) for context in (other, None)]
        doors.known["bound"] = Principal(name="bound", context=mine)
        bound = await server.manager.authenticate(Credentials(token="bound"))
        everyone = await server.manager.authenticate(Credentials(token="alice"))
        for act in (_read, _status):
            for made in outside:
                with pytest.raises(NotFound):
                    await act(bound, made)
                with pytest.raises(StorageFailure):
                    await act(everyone, made)
            with pytest.raises(StorageFailure):
                await act(bound, within)


SOURCE = """
from tailrace_common_api import PermissionDenied, Unauthenticated
from tailrace_server_api import Authenticator, Authorizer, Operation, Principal

class Names(Authenticator):
    async def start(self):
        pass
    async def close(self):
        pass
    async def authenticate(self, credentials):
        if not credentials.token:
            raise Unauthenticated("say your name")
        return Principal(name=credentials.token)

class ReadOnly(Authorizer):
    async def authorize(self, principal, operation, *, context, id):
        if operation is not Operation.LIST and principal.name != "root":
            raise PermissionDenied(f"{principal.name} may list")
"""


async def test_settings_name_authenticator_and_authorizer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "access_of_settings.py").write_text(SOURCE)
    monkeypatch.syspath_prepend(tmp_path)
    options = {"authenticator": "access_of_settings:Names", "authorizer": "access_of_settings:ReadOnly"}
    async with create_manager(None, options) as server:
        root = await server.manager.authenticate(Credentials(token="root"))
        made = await _store(root)
        guest = await server.manager.authenticate(Credentials(token="guest"))
        assert [status.id for status in (await guest.list(ListFilter(), limit=5)).statuses] == [made]
        with pytest.raises(PermissionDenied, match="guest may list"):
            await _read(guest, made)
        with pytest.raises(Unauthenticated, match="say your name"):
            await server.manager.authenticate(Credentials())


@pytest.mark.parametrize("name", ["authenticator", "authorizer"])
def test_settings_that_name_something_else_are_refused(name: str) -> None:
    with pytest.raises(ConfigurationError) as refused:
        create_manager(None, {name: "builtins:dict"})
    assert refused.value.field == name


def test_tokens_and_another_authenticator_are_one_too_many(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError) as refused:
        create_manager(None, {"authenticator": "x:y", "tokens": str(tmp_path / "tokens.json")})
    assert refused.value.field == "authenticator"
