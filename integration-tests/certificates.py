"""Certificates for tests, made where they are needed."""

from __future__ import annotations

import datetime
from pathlib import Path

import trustme


class Certificates:
    """An authority, and files of what it has signed."""

    def __init__(self, folder: Path) -> None:
        """Keep files in ``folder``, which exists."""
        self._folder = folder
        self._authority = trustme.CA(key_type=trustme.KeyType.ECDSA)
        self._count = 0
        self.ca_file = str(folder / "ca.pem")
        """PEM file of the authority."""
        self._authority.cert_pem.write_to_path(self.ca_file)

    def issue(self, *names: str, common_name: str | None = None, expired: bool = False) -> dict[str, str]:
        """Return ``certificate_file`` and ``key_file`` of a new certificate for ``names``."""
        now = datetime.datetime.now(datetime.UTC)
        issued = self._authority.issue_cert(
            *names,
            common_name=common_name,
            not_before=now - datetime.timedelta(days=9),
            not_after=now + datetime.timedelta(days=-1 if expired else 9),
            key_type=trustme.KeyType.ECDSA,
        )
        self._count += 1
        certificate, key = self._folder / f"{self._count}.pem", self._folder / f"{self._count}.key"
        issued.private_key_pem.write_to_path(str(key))
        for part, pem in enumerate(issued.cert_chain_pems):
            pem.write_to_path(str(certificate), append=part > 0)
        return {"certificate_file": str(certificate), "key_file": str(key)}
