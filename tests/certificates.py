"""Certificates for tests: an authority of our own, and what it certifies, as PEM files.

Knows trustme. `Authority(folder)` writes `ca.pem`; `issue` writes a certificate with its key.
"""

from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

import trustme
from cryptography import x509
from cryptography.hazmat.primitives.hashes import SHA256

HOSTS = ("127.0.0.1", "localhost")


@dataclass(frozen=True)
class Pem:
    """A certificate with its key: two files, and what settings may call it by."""

    certificate: Path
    key: Path

    @property
    def sha256(self) -> str:
        found = x509.load_pem_x509_certificate(self.certificate.read_bytes())
        return found.fingerprint(SHA256()).hex()

    @property
    def settings(self) -> dict[str, str]:
        return {"tls_certificate": str(self.certificate), "tls_key": str(self.key)}


class Authority:
    """An authority whose certificate lies at `path`."""

    def __init__(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self._folder = folder
        self._ca = trustme.CA(key_type=trustme.KeyType.ECDSA)
        self.path = folder / "ca.pem"
        self._ca.cert_pem.write_to_path(self.path)

    def issue(
        self,
        name: str,
        *hosts: str,
        days: float = 365,
        key_type: trustme.KeyType = trustme.KeyType.RSA,
    ) -> Pem:
        """Certify `name` as common name and `hosts` as SAN, for so many days; below 0 it is over.

        An earlier one of the same name is replaced, as a renewal does it.
        """
        issued = self._ca.issue_cert(
            *(hosts or HOSTS),
            common_name=name,
            not_before=datetime.now(UTC) - timedelta(days=400),
            not_after=datetime.now(UTC) + timedelta(days=days),
            key_type=key_type,
        )
        pem = Pem(self._folder / f"{name}.pem", self._folder / f"{name}.key")
        for path, blobs in (
            (pem.certificate, issued.cert_chain_pems),
            (pem.key, [issued.private_key_pem]),
        ):
            partial = path.with_suffix(".partial")
            partial.write_bytes(b"".join(each.bytes() for each in blobs))
            partial.replace(path)
        return pem
