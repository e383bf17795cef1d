"""Reading the options of transports, which come as texts from files, the environment and the command line."""

from __future__ import annotations

import ipaddress
from collections.abc import Mapping

from tailrace_common_api import ConfigurationError

_FLAGS = {"true": True, "yes": True, "on": True, "1": True, "false": False, "no": False, "off": False, "0": False}


def check_option_names(options: Mapping[str, str], known: tuple[str, ...]) -> None:
    """Check that every option is a known one.

    Raises:
        ConfigurationError: One is not.
    """
    for name in options:
        if name not in known:
            raise ConfigurationError(field="options", problem=f"unknown option {name!a}; known are {', '.join(known)}")


def flag_option(options: Mapping[str, str], name: str, default: bool) -> bool:
    """Return an option that is true or false, in any of the usual words; ``default`` when it is missing.

    Raises:
        ConfigurationError: It is neither.
    """
    text = options.get(name)
    if text is None:
        return default
    try:
        return _FLAGS[text.lower()]
    except KeyError:
        raise ConfigurationError(field=name, problem=f"{text!a} is neither true nor false") from None


def is_loopback(host: str) -> bool:
    """Return whether ``host`` is this machine, as far as that can be told without asking for its address."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False
