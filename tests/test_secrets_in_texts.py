"""What opens a door is not shown by the text of an object: it would end up in logs and in the reports of errors."""

import dataclasses
import importlib
import inspect
import pkgutil
from collections.abc import Iterator

import pytest

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


def secret_fields(package: str) -> Iterator[tuple[str, dataclasses.Field[object]]]:
    root = importlib.import_module(package)
    for found in pkgutil.walk_packages(root.__path__, f"{package}."):
        if "contracts" in found.name or found.name.endswith(("__main__", "_pb2", "_pb2_grpc")):
            continue
        module = importlib.import_module(found.name)
        for name, value in vars(module).items():
            if inspect.isclass(value) and value.__module__ == found.name and dataclasses.is_dataclass(value):
                for field in dataclasses.fields(value):
                    if field.name == "token":
                        yield f"{found.name}.{name}", field


@pytest.mark.parametrize("package", PACKAGES)
def test_no_text_shows_a_token(package: str) -> None:
    assert [where for where, field in secret_fields(package) if field.repr] == []


def test_tokens_are_found() -> None:
    assert {where for where, _ in secret_fields("tailrace_common_api")} == {
        "tailrace_common_api._settings.ClientSettings"
    }
