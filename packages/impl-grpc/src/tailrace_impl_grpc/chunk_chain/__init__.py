"""The chunk chain on streaming methods and message types of your own, for gRPC's blocking API.

Any message type that can hold two byte strings can carry a verified transfer of any size: the bytes of a chunk, and the
hash of the chunk before it. Loss, repeat, exchange and corruption of messages are found at the message behind, and a
transfer that was cut off is never taken for a whole one. The Tailrace services have no part in it::

    from tailrace_impl_grpc.chunk_chain import ChunkChain

    PARTS = ChunkChain(
        build=lambda data, previous: Part(content=data, before=previous),
        read=lambda part: (part.content, part.before),
    )

    class Store(StoreServicer):
        def Put(self, request_iterator, context):              # rpc Put(stream Part) returns (Receipt)
            with open("incoming", "wb") as file:
                return Receipt(size=PARTS.accept(request_iterator, file, context))

        def Get(self, request, context):                       # rpc Get(Order) returns (stream Part)
            return PARTS.messages(open(request.name, "rb"))

    receipt = PARTS.upload(stub.Put, file)
    size = PARTS.download(stub.Get(Order(name="x")), file)

:mod:`tailrace_impl_grpc.chunk_chain.aio` does the same for ``grpc.aio``.
"""

from tailrace_impl_grpc._chunk_chain import ChunkChain, Sink

__all__ = ["ChunkChain", "Sink"]
