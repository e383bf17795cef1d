"""A word of warning where a secret is sent so that others can read it."""

from __future__ import annotations

import logging

from tailrace_impl_common._options import is_loopback

logger = logging.getLogger(__name__)

_warned: set[str] = set()


def warn_of_clear_text(host: str) -> None:
    """Log once for each host that tokens go there without TLS; nothing for this machine itself."""
    if not is_loopback(host) and host not in _warned:
        _warned.add(host)
        logger.warning("the token for %s is sent without TLS: whoever sees the connection can use it", ascii(host))
