"""Client-streaming methods and message types of your own as bulks: see :class:`BulkMethods`.

Everything that a client streams becomes visible at once when it half-closes, or nothing of it does::

    from tailrace_impl_grpc.records import BulkMethods

    class Contacts(ContactsServicer):
        def __init__(self, manager):
            self._bulks = BulkMethods(manager)

        async def CreateContacts(self, requests, context):     # rpc CreateContacts(stream Contact) returns (Created)
            result = await self._bulks.receive("contacts", requests, context)
            return Created(id=result.id, count=result.records)
"""

from tailrace_impl_grpc._bulk_methods import IDEMPOTENCY_KEY, BulkMethods
from tailrace_impl_grpc._message_content import json_of

__all__ = ["IDEMPOTENCY_KEY", "BulkMethods", "json_of"]
