"""Tailrace over gRPC."""

from tailrace_impl_grpc._client import GrpcConnection, connect
from tailrace_impl_grpc._error_table import ERROR_KEY, ERROR_TABLE
from tailrace_impl_grpc._options import BEST_CHUNK_SIZE, GrpcClientOptions, GrpcServerOptions
from tailrace_impl_grpc._server import GrpcServer

__all__ = [
    "BEST_CHUNK_SIZE",
    "ERROR_KEY",
    "ERROR_TABLE",
    "GrpcClientOptions",
    "GrpcConnection",
    "GrpcServer",
    "GrpcServerOptions",
    "connect",
]
