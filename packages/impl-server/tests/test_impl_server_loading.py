"""Objects that settings name as MODULE:NAME."""

from pathlib import Path

import pytest

from tailrace_common_api import ConfigurationError
from tailrace_impl_server._loading import load_named
from tailrace_server_api import ServerHooks

SOURCE = """
from tailrace_server_api import ServerHooks

class Hooks(ServerHooks):
    class Inner(ServerHooks):
        pass

def make():
    return Hooks()

def fail():
    raise ValueError("no such table")

number = 3
"""


@pytest.fixture(autouse=True)
def module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "named_objects.py").write_text(SOURCE)
    (tmp_path / "broken_objects.py").write_text("import nothing_like_this")
    monkeypatch.syspath_prepend(tmp_path)


@pytest.mark.parametrize("name", ["Hooks", "Hooks.Inner", "make"])
def test_classes_and_functions_are_called(name: str) -> None:
    made = load_named(f"named_objects:{name}", ServerHooks, field="hooks")
    assert isinstance(made, ServerHooks)


@pytest.mark.parametrize(
    ("reference", "problem"),
    [
        ("named_objects", "form MODULE:NAME"),
        (":Hooks", "form MODULE:NAME"),
        ("named_objects:", "form MODULE:NAME"),
        ("nothing_like_this:Hooks", "cannot import 'nothing_like_this': ModuleNotFoundError"),
        ("broken_objects:Hooks", "cannot import 'broken_objects': ModuleNotFoundError"),
        ("named_objects:Other", "has no 'Other'"),
        ("named_objects:number", "is int, which is no callable"),
        ("named_objects:fail", "failed: ValueError: no such table"),
        ("builtins:dict", "returns dict, which is no ServerHooks"),
    ],
)
def test_what_cannot_be_had_is_told(reference: str, problem: str) -> None:
    with pytest.raises(ConfigurationError, match="hooks") as raised:
        load_named(reference, ServerHooks, field="hooks")
    assert problem in raised.value.message
