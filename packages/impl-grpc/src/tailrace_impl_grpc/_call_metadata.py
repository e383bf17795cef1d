"""What the metadata of a call says beside its messages: who calls, and in which trace."""

from __future__ import annotations

from collections.abc import Mapping

from tailrace_impl_grpc._server_streams import Context
from tailrace_server_api import Credentials

_AUTHORIZATION = "authorization"
_BEARER = "bearer "
_TRACE_KEYS = ("traceparent", "tracestate")


def credentials_of(context: Context, *, certificates: bool = True) -> Credentials:
    """Return what the caller shows; without ``certificates`` where the server asks for none."""
    shown = [value for key, value in context.invocation_metadata() or () if key == _AUTHORIZATION]
    # Which of several is meant nobody can know: whoever stands before the server may have looked at another one.
    authorization = shown[0] if len(shown) == 1 and isinstance(shown[0], str) else ""
    token = authorization[len(_BEARER) :].strip() if authorization.lower().startswith(_BEARER) else None
    names = _certificate_names(context) if certificates else ()
    return Credentials(token=token or None, certificate_names=names, peer=context.peer())


def trace_of(context: Context) -> Mapping[str, str]:
    """Return the trace context of the caller; empty for none."""
    metadata = context.invocation_metadata() or ()
    return {key: value for key, value in metadata if key in _TRACE_KEYS and isinstance(value, str)}


def _certificate_names(context: Context) -> tuple[str, ...]:
    """Return the names in the certificate that gRPC has checked, the common name first; none without mutual TLS."""
    known = context.auth_context()
    names = (*known.get("x509_common_name", ()), *known.get("x509_subject_alternative_name", ()))
    return tuple(dict.fromkeys(name.decode("utf-8", "replace") for name in names))
