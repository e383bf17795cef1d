"""Tailrace over gRPC."""

from tailrace_impl_grpc._client import GrpcConnection, connect
from tailrace_impl_grpc._options import BEST_CHUNK_SIZE, GrpcClientOptions, GrpcServerOptions
from tailrace_impl_grpc._server import GrpcServer

__all__ = [
    "BEST_CHUNK_SIZE",
    "GrpcClientOptions",
    "GrpcConnection",
    "GrpcServer",
    "GrpcServerOptions",
    "connect",
]
