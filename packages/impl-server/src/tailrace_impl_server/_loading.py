"""Objects that settings name as ``MODULE:NAME``."""

from __future__ import annotations

import importlib
from typing import TypeVar

from tailrace_common_api import ConfigurationError

_T = TypeVar("_T")


def load_named(reference: str, kind: type[_T], *, field: str) -> _T:
    """Import what a setting names, call it without arguments and return what it makes.

    Args:
        reference: ``MODULE:NAME``; the name may have dots. A class is called like any other callable.
        kind: What has to come out.
        field: Name of the setting, for the error.

    Raises:
        ConfigurationError: There is no such module or name, it cannot be called, the call fails, or what it returns is
            of another kind.
    """
    found = find_named(reference, field=field)
    if not callable(found):
        raise ConfigurationError(field=field, problem=f"{reference!a} is {type(found).__name__}, which is no callable")
    try:
        made: object = found()
    except ConfigurationError:
        raise
    except Exception as error:
        raise ConfigurationError(field=field, problem=f"{reference!a} failed: {_shown(error)}") from error
    if not isinstance(made, kind):
        problem = f"{reference!a} returns {type(made).__name__}, which is no {kind.__name__}"
        raise ConfigurationError(field=field, problem=problem)
    return made


def find_named(reference: str, *, field: str) -> object:
    """Import what a setting names, ``MODULE:NAME``, and return it.

    Raises:
        ConfigurationError: There is no such module or name; ``field`` is the name of the setting.
    """
    module_name, colon, name = reference.partition(":")
    if not (colon and module_name and name):
        raise ConfigurationError(field=field, problem=f"{reference!a} is not of the form MODULE:NAME")
    try:
        found: object = importlib.import_module(module_name)
    except Exception as error:
        raise ConfigurationError(field=field, problem=f"cannot import {module_name!a}: {_shown(error)}") from error
    for part in name.split("."):
        try:
            found = getattr(found, part)
        except AttributeError:
            raise ConfigurationError(field=field, problem=f"{module_name!a} has no {name!a}") from None
    return found


def _shown(error: Exception) -> str:
    return f"{type(error).__name__}: {error}"
