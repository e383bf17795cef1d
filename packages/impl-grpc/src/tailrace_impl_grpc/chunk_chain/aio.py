"""The chunk chain on streaming methods and message types of your own, for ``grpc.aio``.

The same as :mod:`tailrace_impl_grpc.chunk_chain`, with the same names::

    from tailrace_impl_grpc.chunk_chain.aio import ChunkChain

    class Store(StoreServicer):
        async def Put(self, request_iterator, context):        # rpc Put(stream Part) returns (Receipt)
            return Receipt(size=await PARTS.accept(request_iterator, sink, context))

        async def Get(self, request, context):                 # rpc Get(Order) returns (stream Part)
            async for part in PARTS.messages(source):
                yield part

    receipt = await PARTS.upload(stub.Put, source)
    size = await PARTS.download(stub.Get(Order(name="x")), sink)
"""

from tailrace_impl_grpc._chunk_chain_aio import ChunkChain, Sink

__all__ = ["ChunkChain", "Sink"]
