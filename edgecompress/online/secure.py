"""TLS between teacher and student: the certificates of a run, and gRPC credentials. A connection
without TLS needs an explicit `insecure`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta, timezone
from pathlib import Path

import grpc

from edgecompress.errors import EnvironmentMissingError, UsageError


@dataclass(frozen=True)
class Tls:
    """Paths of the authority's certificate, and of this end's own certificate and key (PEM). Each
    end authenticates the other.
    """

    ca: Path
    cert: Path
    key: Path

    def _read(self) -> tuple[bytes, bytes, bytes]:
        try:
            return self.ca.read_bytes(), self.cert.read_bytes(), self.key.read_bytes()
        except OSError as error:
            raise UsageError(
                f"TLS file '{error.filename}' cannot be read: {error.strerror}"
            ) from error

    def server(self) -> grpc.ServerCredentials:
        """For the teacher, which requires a certificate of its students too."""
        ca, cert, key = self._read()
        return grpc.ssl_server_credentials(
            [(key, cert)], root_certificates=ca, require_client_auth=True
        )

    def channel(self) -> grpc.ChannelCredentials:
        """For a student."""
        ca, cert, key = self._read()
        return grpc.ssl_channel_credentials(ca, key, cert)


def chosen(ca: Path | None, cert: Path | None, key: Path | None, insecure: bool) -> Tls | None:
    """The TLS files given, or None for an explicit `insecure`.

    Raises `UsageError` when only some of them, both, or neither are given.
    """
    given = [path for path in (ca, cert, key) if path is not None]
    if insecure:
        if given:
            raise UsageError("--insecure with TLS files: give one or the other")
        return None
    if ca is None or cert is None or key is None:
        raise UsageError(
            "TLS needs --tls-ca, --tls-cert and --tls-key; or give --insecure to go without"
        )
    return Tls(ca, cert, key)


def make_certificates(
    folder: Path, names: Mapping[str, Sequence[str]], days: int = 2
) -> dict[str, Tls]:
    """An authority for one run, and a certificate for each of `names`, valid for its addresses
    (IPv4, IPv6 or DNS) and for `days`. Keys are readable by their owner only; that of the authority
    is never written.

    Raises `EnvironmentMissingError` without the package trustme.
    """
    try:
        import trustme
    except ImportError as error:
        raise EnvironmentMissingError(
            "package 'trustme' is not installed, which makes the run's certificates: run pip "
            "install 'edgecompress[emulate]', or give --insecure"
        ) from error
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    authority = trustme.CA(organization_name="edgecompress run")
    authority.cert_pem.write_to_path(folder / "ca.pem")
    end = datetime.now(timezone.utc) + timedelta(days=days)
    certificates = {}
    for name, addresses in names.items():
        issued = authority.issue_cert(*addresses, common_name=name, not_after=end)
        tls = Tls(folder / "ca.pem", folder / f"{name}.pem", folder / f"{name}.key")
        tls.cert.write_bytes(b"".join(blob.bytes() for blob in issued.cert_chain_pems))
        tls.key.touch(mode=0o600)
        issued.private_key_pem.write_to_path(tls.key)
        certificates[name] = tls
    return certificates
