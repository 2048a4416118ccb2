"""TLS for a server: a certificate and its key."""

from __future__ import annotations

import ssl
from pathlib import Path

from tauten.errors import ConfigError


def server_context(certificate: Path, key: Path | None) -> ssl.SSLContext:
    """What a listener needs to speak TLS 1.2 or newer.

    ``certificate`` is a PEM file with the chain, ``key`` one with the private key, where that is not in the first.
    Raises ``ConfigError`` for a file that is not there or holds neither.
    """
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.set_alpn_protocols(["http/1.1"])
    try:
        # A key with a passphrase would ask for it at the terminal, where nobody may be.
        context.load_cert_chain(certificate, key, password=_no_passphrase)
    except FileNotFoundError as fault:
        raise ConfigError(f"expected a PEM file, {fault.filename or certificate} is not there") from None
    except (ssl.SSLError, OSError, ValueError) as fault:
        raise ConfigError(f"expected a certificate and its key in PEM, got {certificate}, {key}: {fault}") from None
    return context


def _no_passphrase() -> str:
    raise ValueError("the key has a passphrase: give one without")
