"""TLS between teacher and student: the certificates of a run, and gRPC credentials. A connection
without TLS needs an explicit `insecure`.
"""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
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
    """An authority for one run, and a certificate for each of `names`, valid for its addresses; the
    keys are readable by their owner only.

    Raises `EnvironmentMissingError` without the program openssl.
    """
    if shutil.which("openssl") is None:
        raise EnvironmentMissingError(
            "openssl is not installed, which makes the run's certificates: run apt-get install "
            "openssl, or --insecure"
        )
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    _make_authority(folder, days)
    certificates = {
        name: _make_certificate(folder, name, addresses, days) for name, addresses in names.items()
    }
    for path in folder.glob("*.key"):
        path.chmod(0o600)
    return certificates


_NEW_KEY = ("-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes")


def _make_authority(folder: Path, days: int) -> None:
    """Write `ca.key` and `ca.pem`."""
    files = ("-keyout", "ca.key", "-out", "ca.pem")
    subject = ("-days", str(days), "-subj", "/CN=edgecompress run")
    _openssl(folder, "req", "-x509", *_NEW_KEY, *files, *subject)


def _make_certificate(folder: Path, name: str, addresses: Sequence[str], days: int) -> Tls:
    """Write the key and the signed certificate of `name`."""
    request = ("-keyout", f"{name}.key", "-out", f"{name}.csr", "-subj", f"/CN={name}")
    _openssl(folder, "req", *_NEW_KEY, *request)

    kinds = [f"{'IP' if part.replace('.', '').isdigit() else 'DNS'}:{part}" for part in addresses]
    (folder / f"{name}.ext").write_text(f"subjectAltName={','.join(kinds)}\n")
    authority = ("-CA", "ca.pem", "-CAkey", "ca.key", "-CAcreateserial")
    options = ("-days", str(days), "-extfile", f"{name}.ext")
    certificate = ("-in", f"{name}.csr", "-out", f"{name}.pem")
    _openssl(folder, "x509", "-req", *certificate, *authority, *options)
    return Tls(folder / "ca.pem", folder / f"{name}.pem", folder / f"{name}.key")


def _openssl(folder: Path, *arguments: str) -> None:
    subprocess.run(["openssl", *arguments], check=True, capture_output=True, cwd=folder)
