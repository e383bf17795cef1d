"""Which package imports what: third parties, and whether what is imported is declared."""

import ast
import re
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]

# Imported name → distribution, where they differ.
DISTRIBUTIONS = {
    "google": "protobuf",
    "grpc": "grpcio",
    "grpc_health": "grpcio-health-checking",
    "grpc_reflection": "grpcio-reflection",
    "opentelemetry": "opentelemetry-api",
}

# Third-party modules by package, those of extras among them.
THIRD_PARTY: dict[str, set[str]] = {
    "common-api": set(),
    "server-api": set(),
    "client-upload-api": set(),
    "client-download-api": set(),
    "impl-common": {"opentelemetry", "stringzilla", "watchfiles", "xxhash"},
    "impl-server": {"asyncpg", "google", "jsonschema_rs", "orjson", "prometheus_client"},
    "impl-grpc": {"google", "grpc", "grpc_health", "grpc_reflection", "hpack"},
    "impl-websocket": {"starlette", "uvicorn", "websockets"},
    "tailrace": {"click", "pydantic", "pydantic_settings", "rich", "uvloop"},
}

# In the interface packages, a module of this name in the path may import these: they come with an extra.
BY_MODULE: dict[str, set[str]] = {"contracts": {"pytest", "pytest_asyncio"}, "sync": {"anyio"}}
INTERFACES = {"server-api", "client-upload-api", "client-download-api"}


def imported_modules(source: str) -> Iterator[str]:
    """Yield the top-level name of every absolute import, wherever in the source it stands."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield alias.name.partition(".")[0]
        elif isinstance(node, ast.ImportFrom) and node.level == 0:
            assert node.module is not None
            yield node.module.partition(".")[0]


# _typeshed exists for type checkers only; importing it at run time would fail at once.
OWN_OR_TYPES = {"tailrace", "_typeshed"}


def third_parties(source: str) -> set[str]:
    """Return the imported modules that are neither of the standard library nor of this workspace."""
    return {
        name
        for name in imported_modules(source)
        if name not in sys.stdlib_module_names and name not in OWN_OR_TYPES and not name.startswith("tailrace_")
    }


def allowed(package: str, module: Path) -> set[str]:
    names = set(THIRD_PARTY[package])
    if package in INTERFACES:
        for part in module.with_suffix("").parts:
            names |= BY_MODULE.get(part.removeprefix("_"), set())
    return names


def requirement_name(requirement: str) -> str:
    match = re.match(r"[A-Za-z0-9._-]+", requirement)
    assert match is not None
    return match[0].lower().replace("_", "-")


def sources(package: str) -> list[Path]:
    found = sorted((ROOT / "packages" / package / "src").rglob("*.py"))
    assert found
    return found


def test_every_package_has_a_rule() -> None:
    assert {path.parent.name for path in (ROOT / "packages").glob("*/pyproject.toml")} == set(THIRD_PARTY)


@pytest.mark.parametrize("package", THIRD_PARTY)
def test_only_permitted_third_parties_are_imported(package: str) -> None:
    folder = ROOT / "packages" / package / "src"
    offences = {
        f"{path.relative_to(ROOT)}: {name}"
        for path in sources(package)
        for name in third_parties(path.read_text("utf-8")) - allowed(package, path.relative_to(folder))
    }
    assert not offences


@pytest.mark.parametrize("package", THIRD_PARTY)
def test_what_is_imported_is_declared(package: str) -> None:
    project = tomllib.loads((ROOT / "packages" / package / "pyproject.toml").read_text("utf-8"))["project"]
    declared = {requirement_name(requirement) for requirement in project["dependencies"]}
    for requirements in project.get("optional-dependencies", {}).values():
        declared |= {requirement_name(requirement) for requirement in requirements}

    imported = {name for path in sources(package) for name in imported_modules(path.read_text("utf-8"))}
    needed = {
        DISTRIBUTIONS.get(name, name).replace("_", "-")
        for name in imported
        if name not in sys.stdlib_module_names | {"_typeshed"} and name != project["name"].replace("-", "_")
    }
    # pydantic comes with pydantic-settings, which re-exports nothing of it and is versioned against it.
    assert needed - {"pydantic"} <= declared


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        ("import os, xxhash.h as x", {"xxhash"}),
        ("def later():\n    from grpc.aio import Channel", {"grpc"}),
        ("from . import grpc\nfrom tailrace_common_api import Status", set()),
    ],
)
def test_imports_are_found_wherever_they_stand(source: str, expected: set[str]) -> None:
    assert third_parties(source) == expected


def test_exceptions_hold_in_the_named_modules_of_interfaces_only() -> None:
    assert "pytest" in allowed("server-api", Path("tailrace_server_api/contracts/storage.py"))
    assert "pytest" not in allowed("server-api", Path("tailrace_server_api/storage.py"))
    assert "anyio" in allowed("client-upload-api", Path("tailrace_client_upload_api/sync.py"))
    assert "anyio" not in allowed("common-api", Path("tailrace_common_api/sync.py"))
