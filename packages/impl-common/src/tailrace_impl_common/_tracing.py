"""Traces of OpenTelemetry across processes, where its package is installed; otherwise nothing.

The context of a trace travels as the headers of W3C Trace Context (``traceparent``, ``tracestate``) in the metadata of
a request.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext

_INSTALLED = importlib.util.find_spec("opentelemetry") is not None


def outgoing_trace() -> Mapping[str, str]:
    """Return the headers that carry the current trace to a server; empty when there is none."""
    if not _INSTALLED:
        return {}
    from opentelemetry import propagate

    headers: dict[str, str] = {}
    propagate.inject(headers)
    return headers


def traced(request: object, trace: Mapping[str, str]) -> AbstractContextManager[object]:
    """Return a block that is a span of the caller's trace.

    Args:
        request: What is served; the span bears the name of its class.
        trace: Headers that the caller sent; empty for a trace of its own.
    """
    if not _INSTALLED:
        return nullcontext()
    from opentelemetry import propagate
    from opentelemetry import trace as tracing

    return tracing.get_tracer("tailrace").start_as_current_span(
        f"tailrace {type(request).__name__}", context=propagate.extract(trace), kind=tracing.SpanKind.SERVER
    )
