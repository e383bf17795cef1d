"""What opens a door is not shown by the text of an object: it would end up in logs and in the reports of errors."""

import dataclasses
import importlib
import inspect
import pkgutil
from collections.abc import Iterator
from typing import Any

import pytest

from tailrace_common_api import ClientSettings

PACKAGES = (
    "tailrace",
    "tailrace_client_download_api",
    "tailrace_client_upload_api",
    "tailrace_common_api",
    "tailrace_impl_common",
    "tailrace_impl_grpc",
    "tailrace_impl_server",
    "tailrace_impl_websocket",
    "tailrace_server_api",
)


def classes_with_tokens(package: str) -> Iterator[type]:
    root = importlib.import_module(package)
    for found in pkgutil.walk_packages(root.__path__, f"{package}."):
        if "contracts" in found.name or found.name.endswith(("__main__", "_pb2", "_pb2_grpc")):
            continue
        module = importlib.import_module(found.name)
        for value in vars(module).values():
            if (
                inspect.isclass(value)
                and value.__module__ == found.name
                and dataclasses.is_dataclass(value)
                and any(field.name == "token" for field in dataclasses.fields(value))
            ):
                yield value


@pytest.mark.parametrize("package", PACKAGES)
def test_no_text_shows_a_token(package: str) -> None:
    assert [found for found in classes_with_tokens(package) if "a secret" in text_of(found)] == []


def text_of(found: Any) -> str:
    """Return the text of an instance that has a token, and nothing else."""
    instance = object.__new__(found)
    for field in dataclasses.fields(found):
        object.__setattr__(instance, field.name, "a secret" if field.name == "token" else None)
    return f"{instance!r} {instance}"


def test_tokens_are_found() -> None:
    assert set(classes_with_tokens("tailrace_common_api")) == {ClientSettings}
