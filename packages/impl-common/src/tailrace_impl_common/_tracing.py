"""Traces of OpenTelemetry across processes, where its package is installed; otherwise nothing.

The context of a trace travels as the headers of W3C Trace Context (``traceparent``, ``tracestate``) in the metadata of
a request. Nothing of OpenTelemetry is imported before the first request.
"""

from __future__ import annotations

import functools
from collections.abc import Generator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import TYPE_CHECKING

from tailrace_common_api import TailraceError

if TYPE_CHECKING:
    from opentelemetry.trace import Span, Tracer

_HEADERS = frozenset({"traceparent", "tracestate"})
_NOTHING = nullcontext()


@functools.cache
def _installed() -> bool:
    try:
        # Other distributions put modules below the same name, so that a package of that name says nothing.
        import opentelemetry.propagate
        import opentelemetry.trace  # noqa: F401 - asked for, and imported by who uses it
    except ImportError:
        return False
    return True


def outgoing_trace() -> Mapping[str, str]:
    """Return the headers that carry the current trace to a server; empty when there is none."""
    if not _installed():
        return {}
    from opentelemetry import propagate, trace

    if not trace.get_current_span().get_span_context().is_valid:
        return {}
    headers: dict[str, str] = {}
    propagate.inject(headers)
    # Baggage, which others may have configured to travel along, is nothing that this protocol carries.
    return {name: value for name, value in headers.items() if name in _HEADERS}


def traced(operation: str, trace: Mapping[str, str], *, transport: str = "") -> AbstractContextManager[object]:
    """Return a block that is a span of the caller's trace.

    Args:
        operation: Name of the request that is served.
        trace: Headers that the caller sent; empty for a trace of its own.
        transport: Name of the transport; empty where there is none.
    """
    if _installed() and (trace or _recorded()):
        return _span(operation, trace, transport)
    return _NOTHING


@contextmanager
def _span(operation: str, headers: Mapping[str, str], transport: str) -> Generator[None, None, None]:
    from opentelemetry import propagate
    from opentelemetry.trace import SpanKind

    attributes = {"rpc.system": "tailrace", "rpc.method": operation}
    if transport:
        attributes["tailrace.transport"] = transport
    with _tracer().start_as_current_span(
        f"tailrace {operation}",
        context=propagate.extract(headers),
        kind=SpanKind.SERVER,
        attributes=attributes,
        # Said here in a bounded form: what OpenTelemetry records has the text of the error, and ids are in that.
        record_exception=False,
        set_status_on_exception=False,
    ) as span:
        try:
            yield
        except TailraceError as error:
            _record(span, error.code)
            raise
        except Exception as error:
            _record(span, type(error).__name__)
            raise


def _record(span: Span, kind: str) -> None:
    from opentelemetry.trace import Status, StatusCode

    span.set_attribute("error.type", kind)
    span.set_status(Status(StatusCode.ERROR, kind))
    span.add_event("exception", {"exception.type": kind})


def _recorded() -> bool:
    """Whether spans go anywhere: the package alone makes some that cost a good part of a small request."""
    from opentelemetry.trace import ProxyTracer, ProxyTracerProvider, get_tracer_provider

    # A provider may be set at any time.
    return not (isinstance(_tracer(), ProxyTracer) and isinstance(get_tracer_provider(), ProxyTracerProvider))


@functools.cache
def _tracer() -> Tracer:
    from opentelemetry import trace

    return trace.get_tracer("tailrace")


def current_trace() -> Mapping[str, str]:
    """Return ``trace_id`` and ``span_id`` of the current span in hexadecimal digits; empty when there is none."""
    if not _installed():
        return {}
    from opentelemetry import trace

    context = trace.get_current_span().get_span_context()
    if not context.is_valid:
        return {}
    return {"trace_id": trace.format_trace_id(context.trace_id), "span_id": trace.format_span_id(context.span_id)}
