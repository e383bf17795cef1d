"""Contract tests of the upload interfaces; subclass them in the tests of an implementation.

Needs the extra ``contracts`` (pytest, pytest-asyncio in auto mode).
"""

from tailrace_client_upload_api.contracts.bulks import BulkClientContract
from tailrace_client_upload_api.contracts.uploads import UploadClientContract

__all__ = ["BulkClientContract", "UploadClientContract"]
