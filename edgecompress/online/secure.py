"""TLS between teacher and student: certificates of a run, and gRPC credentials. Without them only
an explicit `insecure` connects.
"""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import grpc

from edgecompress.errors import EnvironmentMissingError, UsageError


@dataclass(frozen=True)
class Tls:
    """Paths of the authority's certificate, and of this end's own certificate and key (PEM); both
    ends prove who they are.
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
        """For the teacher, which asks its students for a certificate too."""
        ca, cert, key = self._read()
        return grpc.ssl_server_credentials(
            [(key, cert)], root_certificates=ca, require_client_auth=True
        )

    def channel(self) -> grpc.ChannelCredentials:
        """For a student."""
        ca, cert, key = self._read()
        return grpc.ssl_channel_credentials(ca, key, cert)


def chosen(ca: Path | None, cert: Path | None, key: Path | None, insecure: bool) -> Tls | None:
    """The TLS files given, or None for an explicit `insecure`. Raises `UsageError` for a part of
    them, or neither.
    """
    given = [path for path in (ca, cert, key) if path is not None]
    if insecure:
        if given:
            raise UsageError("--insecure beside TLS files: give one or the other")
        return None
    if ca is None or cert is None or key is None:
        raise UsageError(
            "TLS needs --tls-ca, --tls-cert and --tls-key; or say --insecure to go without"
        )
    return Tls(ca, cert, key)


def make_certificates(
    folder: Path, names: dict[str, Sequence[str]], days: int = 2
) -> dict[str, Tls]:
    """An authority for one run and a certificate for each of `names`, valid for its addresses;
    files that only their owner reads.

    Raises `EnvironmentMissingError` without the program openssl.
    """
    program = shutil.which("openssl")
    if program is None:
        raise EnvironmentMissingError(
            "openssl is not here, which makes the run's certificates: run apt-get install "
            "openssl, or --insecure"
        )
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)

    def run(*arguments: str) -> None:
        subprocess.run([str(program), *arguments], check=True, capture_output=True, cwd=folder)

    key = ("-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes")
    run(
        "req",
        "-x509",
        *key,
        "-keyout",
        "ca.key",
        "-out",
        "ca.pem",
        "-days",
        str(days),
        "-subj",
        "/CN=edgecompress run",
    )
    found = {}
    for name, addresses in names.items():
        run("req", *key, "-keyout", f"{name}.key", "-out", f"{name}.csr", "-subj", f"/CN={name}")
        kinds = [
            f"{'IP' if part.replace('.', '').isdigit() else 'DNS'}:{part}" for part in addresses
        ]
        (folder / f"{name}.ext").write_text(f"subjectAltName={','.join(kinds)}\n")
        sign = (
            "-CA",
            "ca.pem",
            "-CAkey",
            "ca.key",
            "-CAcreateserial",
            "-days",
            str(days),
            "-extfile",
            f"{name}.ext",
        )
        run("x509", "-req", "-in", f"{name}.csr", *sign, "-out", f"{name}.pem")
        found[name] = Tls(folder / "ca.pem", folder / f"{name}.pem", folder / f"{name}.key")
    for path in folder.glob("*.key"):
        path.chmod(0o600)
    return found
