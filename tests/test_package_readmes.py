"""Each package says the same kinds of things about itself, in the same order."""

from dataclasses import fields
from pathlib import Path

import pytest

from tailrace_impl_grpc import GrpcClientOptions, GrpcServerOptions
from tailrace_impl_server import ServerSettings
from tailrace_impl_websocket import WebSocketClientOptions, WebSocketServerOptions

PACKAGES = sorted(path.parent for path in (Path(__file__).parents[1] / "packages").glob("*/pyproject.toml"))
HEADINGS = ["What it is", "Install", "Use", "Guarantees", "See also"]


@pytest.mark.parametrize("package", PACKAGES, ids=lambda path: path.name)
def test_headings_are_the_same_in_every_package(package: Path) -> None:
    lines = (package / "README.md").read_text("utf-8").splitlines()
    assert [line.removeprefix("## ") for line in lines if line.startswith("## ")] == HEADINGS
    assert lines[0] == f"# {package.name if package.name == 'tailrace' else 'tailrace-' + package.name}"


@pytest.mark.parametrize("package", PACKAGES, ids=lambda path: path.name)
def test_examples_are_python(package: Path) -> None:
    text = (package / "README.md").read_text("utf-8")
    for block in text.split("```python\n")[1:]:
        compile(block.split("```")[0], f"{package.name}/README.md", "exec")


@pytest.mark.parametrize(
    ("package", "options"),
    [
        ("impl-grpc", GrpcClientOptions),
        ("impl-grpc", GrpcServerOptions),
        ("impl-server", ServerSettings),
        ("impl-websocket", WebSocketClientOptions),
        ("impl-websocket", WebSocketServerOptions),
    ],
)
def test_every_option_is_named(package: str, options: type) -> None:
    text = (Path(__file__).parents[1] / "packages" / package / "README.md").read_text("utf-8")
    assert [field.name for field in fields(options) if f"`{field.name}`" not in text] == []
