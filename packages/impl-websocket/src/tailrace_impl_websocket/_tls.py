"""Certificates, keys and authorities from files. Everything here blocks."""

from __future__ import annotations

import ssl

from tailrace_common_api import ClientSettings, ConfigurationError
from tailrace_server_api import TransportServerSettings


def client_context(settings: ClientSettings) -> ssl.SSLContext:
    """Return what a client needs for TLS.

    Raises:
        ConfigurationError: A file cannot be read or is not what it should be.
    """
    try:
        context = ssl.create_default_context(cafile=settings.ca_file)
    except OSError as error:
        raise _unusable("ca_file", settings.ca_file, "certificates of authorities", error) from None
    _load_certificate(context, settings.certificate_file, settings.key_file)
    return context


def check_server_files(settings: TransportServerSettings) -> None:
    """Return if a server can use its files.

    Raises:
        ConfigurationError: A file cannot be read or is not what it should be.
    """
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    _load_certificate(context, settings.certificate_file, settings.key_file)
    if settings.client_ca_file is not None:
        try:
            context.load_verify_locations(settings.client_ca_file)
        except OSError as error:
            raise _unusable("client_ca_file", settings.client_ca_file, "certificates of authorities", error) from None


def _load_certificate(context: ssl.SSLContext, certificate_file: str | None, key_file: str | None) -> None:
    if certificate_file is None or key_file is None:
        return
    try:
        context.load_cert_chain(certificate_file, key_file, password=_no_password)
    except (OSError, ValueError) as error:
        raise _unusable(
            "certificate_file", certificate_file, f"a certificate with the key {key_file!a}", error
        ) from None


def _no_password() -> str:
    """Answer for an encrypted key; the terminal would be asked otherwise."""
    raise ValueError("the key is encrypted")


def _unusable(field: str, path: str | None, what: str, error: Exception) -> ConfigurationError:
    return ConfigurationError(field=field, problem=f"{path!a} cannot be used as {what}: {ascii(str(error))[1:-1]}")
