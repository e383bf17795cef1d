"""Traces: carried from caller to server where OpenTelemetry is installed, and nothing at all where it is not."""

import subprocess
import sys
from collections.abc import Iterator

import pytest
from opentelemetry import baggage, context, trace
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import SpanKind, StatusCode, Tracer

from tailrace_common_api import NotFound
from tailrace_impl_common import _tracing, current_trace, outgoing_trace, traced

SECRET = "of-somebody"


@pytest.fixture
def exporter(monkeypatch: pytest.MonkeyPatch) -> Iterator[InMemorySpanExporter]:
    exporter = InMemorySpanExporter()
    provider = TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    # A provider of one test only: the process has room for one.
    monkeypatch.setattr(_tracing, "_tracer", lambda: provider.get_tracer("tailrace"))
    yield exporter
    provider.shutdown()


@pytest.fixture
def tracer(exporter: InMemorySpanExporter) -> Tracer:
    return _tracing._tracer()


def ended(exporter: InMemorySpanExporter) -> dict[str, ReadableSpan]:
    return {span.name: span for span in exporter.get_finished_spans()}


def test_nothing_is_sent_where_there_is_no_trace() -> None:
    assert outgoing_trace() == {}
    assert current_trace() == {}


def test_a_trace_goes_on_at_the_server(exporter: InMemorySpanExporter, tracer: Tracer) -> None:
    with tracer.start_as_current_span("caller"):
        headers = outgoing_trace()
        caller = current_trace()
    assert headers.keys() == {"traceparent"}
    with traced("OpenUpload", headers, transport="grpc"):
        served = current_trace()
    assert served["trace_id"] == caller["trace_id"]
    assert served["span_id"] != caller["span_id"]
    span = ended(exporter)["tailrace OpenUpload"]
    assert span.parent is not None
    assert trace.format_span_id(span.parent.span_id) == caller["span_id"]
    assert span.kind is SpanKind.SERVER
    assert span.attributes is not None
    assert dict(span.attributes) == {
        "rpc.system": "tailrace",
        "rpc.method": "OpenUpload",
        "tailrace.transport": "grpc",
    }
    assert span.status.status_code is StatusCode.UNSET


def test_no_span_is_made_that_goes_nowhere(monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[object] = []
    monkeypatch.setattr(_tracing, "_span", lambda *span: made.append(span))
    # The package is there, and nobody has told it where spans go.
    with traced("OpenUpload", {}, transport="grpc"):
        assert current_trace() == {}
    assert made == []


def test_a_caller_is_known_to_the_log_where_spans_go_nowhere() -> None:
    headers = {"traceparent": "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"}
    with traced("OpenUpload", headers, transport="grpc"):
        assert current_trace()["trace_id"] == "0af7651916cd43dd8448eb211c80319c"
    assert current_trace() == {}


def test_a_provider_that_is_set_later_gets_what_comes_then(monkeypatch: pytest.MonkeyPatch) -> None:
    exporter, provider = InMemorySpanExporter(), TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    asked = trace.ProxyTracer("tailrace")
    monkeypatch.setattr(_tracing, "_tracer", lambda: asked)
    with traced("OpenUpload", {}, transport="grpc"):
        assert current_trace() == {}
    monkeypatch.setattr(trace, "_TRACER_PROVIDER", provider)
    with traced("OpenUpload", {}, transport="grpc"):
        assert current_trace() != {}
    assert "tailrace OpenUpload" in ended(exporter)


@pytest.mark.parametrize("headers", [{}, {"traceparent": "no trace\nat all"}, {"tracestate": "a=b"}])
def test_a_caller_without_a_trace_gets_one_of_its_own(
    exporter: InMemorySpanExporter, tracer: Tracer, headers: dict[str, str]
) -> None:
    with tracer.start_as_current_span("of the server itself"):
        around = current_trace()
        with traced("Read", headers):
            assert current_trace()["trace_id"] != around["trace_id"]
    assert ended(exporter)["tailrace Read"].parent is None


def test_only_the_trace_travels(tracer: Tracer) -> None:
    attached = context.attach(baggage.set_baggage("secret", SECRET))
    try:
        with tracer.start_as_current_span("caller"):
            assert SECRET not in str(outgoing_trace())
    finally:
        context.detach(attached)


@pytest.mark.parametrize(("error", "kind"), [(NotFound(id=SECRET), "not_found"), (ValueError(SECRET), "ValueError")])
def test_an_error_is_recorded_without_its_text(exporter: InMemorySpanExporter, error: Exception, kind: str) -> None:
    with pytest.raises(type(error)), traced("Read", {}):
        raise error
    span = ended(exporter)["tailrace Read"]
    assert (span.status.status_code, span.status.description) == (StatusCode.ERROR, kind)
    assert span.attributes is not None
    assert span.attributes["error.type"] == kind
    assert [event.name for event in span.events] == ["exception"]
    assert SECRET not in span.to_json()


WITHOUT = """
import sys

class Refuse:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] == "opentelemetry":
            raise ModuleNotFoundError(name)

sys.meta_path.insert(0, Refuse())
"""
WITH_ITS_NAMESPACE = """
import sys, types
space = types.ModuleType("opentelemetry")
space.__path__ = []
space.__spec__ = __import__("importlib.machinery").machinery.ModuleSpec("opentelemetry", None, is_package=True)
sys.modules["opentelemetry"] = space
"""
USE = """
from tailrace_impl_common import current_trace, outgoing_trace, traced

assert outgoing_trace() == {}
assert current_trace() == {}
with traced("Read", {"traceparent": "00-" + "1" * 32 + "-" + "2" * 16 + "-01"}, transport="grpc"):
    assert current_trace() == {}
assert not [name for name in sys.modules if name.startswith("opentelemetry.")]
"""


@pytest.mark.parametrize("world", [WITHOUT, WITH_ITS_NAMESPACE], ids=["not there", "only others of its namespace"])
def test_nothing_happens_where_it_is_not_installed(world: str) -> None:
    subprocess.run([sys.executable, "-c", world + USE], check=True, timeout=30)
