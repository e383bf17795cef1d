"""Contract tests of the download interfaces; subclass them in the tests of an implementation.

Needs the extra ``contracts`` (pytest, pytest-asyncio in auto mode).
"""

from tailrace_client_download_api.contracts.downloads import DownloadClientContract, Producer, ReadingClient
from tailrace_client_download_api.contracts.queries import QueryClientContract
from tailrace_client_download_api.contracts.work import WorkClientContract

__all__ = ["DownloadClientContract", "Producer", "QueryClientContract", "ReadingClient", "WorkClientContract"]
