"""TLS for DICOM and HTTPS: contexts by PS3.15, certificates renewed in service, plain errors.

Knows ssl, the settings and the files they name. Must not know associations, nor who may come in:
`peer_identity` says who a certificate names, `door` decides on it.

`handshake` belongs in the connection's own thread, never in the one that accepts: it waits for the
peer, and its limit is over the whole handshake, so a peer that is silent or sends a byte now and
then holds nothing but its own thread, and not for long.
"""

import hashlib
import logging
import socket
import ssl
import threading
import time
from collections.abc import Callable
from datetime import UTC, datetime
from itertools import chain
from pathlib import Path
from typing import Any, Final

from cryptography import x509

from dicom_node.config import Config
from dicom_node.config.peers import Identity
from dicom_node.errors import ConfigError, PeerError, SilentPeer

log = logging.getLogger(__name__)

Tell = Callable[..., None]
DAY_S: Final = 86_400
LINGER_S: Final = 1.0
TLS_HANDSHAKE: Final = 0x16  # RFC 8446 5.1
ASSOCIATE_RQ: Final = 0x01  # PS3.8 Table 9-11
HTTP: Final = {b"GET ", b"POST", b"HEAD", b"PUT ", b"OPTI", b"PRI "}

# TLS 1.2 (RFC 9325 4.2): forward secrecy and AEAD, nothing else. OpenSSL chooses those of TLS 1.3.
# PS3.15 B.12, and what was B.10 (non-downgrading) and B.11 (extended) before; B.13 adds key lengths
# of at least 2048 bits (RSA, DH) or 256 (EC), which level 2 holds peers to, and CCM.
CIPHERS: Final = {
    "bcp195": "ECDHE+AESGCM:ECDHE+CHACHA20",
    "modified": "@SECLEVEL=2:ECDHE+AESGCM:ECDHE+CHACHA20:ECDHE+AESCCM",
}


def server_context(config: Config) -> ssl.SSLContext | None:
    """Make the context for those who call us; None if we speak DICOM without TLS.

    Raises
    ------
    ConfigError
        A file cannot be read or does not fit, or no authority is named for client certificates.
    """
    if not config.tls_certificate:
        return None
    context = _context(config, ssl.PROTOCOL_TLS_SERVER)
    # No resumption: every association shows its certificate, and it is verified as things are now.
    context.options |= ssl.OP_NO_TICKET
    context.num_tickets = 0
    context.verify_mode = ssl.CERT_REQUIRED
    if config.tls_client_certificate == "optional":
        # Without an authority none can be verified, and what is not verified is not asked for.
        context.verify_mode = ssl.CERT_OPTIONAL if config.tls_ca else ssl.CERT_NONE
    elif not config.tls_ca:
        raise ConfigError(
            "tls_ca must name the authority of the certificates that callers must show;"
            ' or set tls_client_certificate = "optional"'
        )
    return context


def client_context(config: Config) -> ssl.SSLContext:
    """Make the context for those we call, by DICOM or HTTPS; with our certificate if we have one.

    Raises
    ------
    ConfigError
        A file cannot be read or does not fit.
    """
    context = _context(config, ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = config.tls_check_hostname
    if not config.tls_ca:
        context.load_default_certs(ssl.Purpose.SERVER_AUTH)
    return context


class Certificates:
    """The server's context, of the files as they are now: renewed ones need no restart.

    A renewed file that cannot be used changes nothing but that it is told; the next change of the
    files is another try.

    Parameters
    ----------
    tell
        Called as ``tell(kind, **data)`` with ``tls.renewed``, ``tls.renewal_failed``, and once a
        day with ``tls.expires``.

    Raises
    ------
    ConfigError
        As `server_context`: at the start there is no older one to keep.
    """

    def __init__(self, config: Config, tell: Tell, clock: Callable[[], float] = time.time) -> None:
        self._config, self._tell, self._clock = config, tell, clock
        self._lock = threading.Lock()
        self._stamps = _stamps(config)
        self._context = server_context(config)
        self._told_at = float("-inf")

    def server(self) -> ssl.SSLContext | None:
        """Give the context for the next handshake; None without TLS. From any thread."""
        if self._context is None:
            return None
        with self._lock:
            told = [*self._renew(), *self._expiring()]
            context = self._context
        for kind, data in told:
            self._say(kind, data)
        return context

    def _say(self, kind: str, data: dict[str, Any]) -> None:
        log.warning(kind, extra=data)
        try:
            self._tell(kind, **data)
        except Exception:  # a ledger that is out of order must not keep a peer out
            log.exception("tls.tell_error", extra={"kind": kind})

    def _renew(self) -> list[tuple[str, dict[str, Any]]]:
        stamps = _stamps(self._config)  # before the files are read: a change meanwhile is seen next
        if stamps == self._stamps:
            return []
        self._stamps = stamps
        try:
            self._context = server_context(self._config)
        except ConfigError as error:
            return [("tls.renewal_failed", {"reason": str(error)})]
        self._told_at = float("-inf")
        return [("tls.renewed", {"certificate": self._config.tls_certificate})]

    def _expiring(self) -> list[tuple[str, dict[str, Any]]]:
        now = self._clock()
        if now - self._told_at < DAY_S:
            return []
        self._told_at = now
        try:
            days = days_left(self._config, now)
        except ConfigError:  # told as a renewal that failed
            return []
        return [("tls.expires", {"days": days})] if days <= self._config.tls_expiry_days else []


def handshake(
    sock: socket.socket,
    context: ssl.SSLContext,
    timeout_s: float,
    *,
    server_hostname: str | None = None,
) -> ssl.SSLSocket:
    """Shake hands on a connected socket, as the side that the context is for.

    The socket is taken over: use only what is returned, whose timeout is the socket's own. If it
    fails the connection is closed.

    Raises
    ------
    PeerError
        There was none within `timeout_s` over all, and why, in plain words.
    SilentPeer
        The peer hung up without a byte, as a probe does.
    """
    deadline = time.monotonic() + timeout_s
    own_timeout_s = sock.gettimeout()
    server_side = context.protocol == ssl.PROTOCOL_TLS_SERVER
    secured = sock
    try:
        if server_side:
            sock.settimeout(timeout_s)
            _expect_tls(sock.recv(4, socket.MSG_PEEK))
        secured = context.wrap_socket(
            sock,
            server_side=server_side,
            do_handshake_on_connect=False,
            server_hostname=server_hostname,
        )
        # One limit for all reads and writes of the handshake: ssl counts down from the call.
        secured.settimeout(max(deadline - time.monotonic(), 0.001))
        secured.do_handshake()
        secured.settimeout(own_timeout_s)
    except OSError as error:
        if isinstance(error, ssl.SSLError):
            _linger(secured)
        secured.close()
        raise PeerError(explain(error)) from error
    except BaseException:
        secured.close()
        raise
    return secured


def peer_identity(secured: ssl.SSLSocket) -> Identity | None:
    """Say who the verified certificate of the peer names; None if it showed none."""
    encoded = secured.getpeercert(binary_form=True)
    told: Any = secured.getpeercert()
    if not encoded or not told:
        return None
    subject = chain.from_iterable(told.get("subject", ()))
    common = [str(value) for key, value in subject if key == "commonName"]
    names = tuple(str(value) for _, value in told.get("subjectAltName", ()))
    return Identity(hashlib.sha256(encoded).hexdigest(), common[-1] if common else "", names)


def is_tls(first: bytes) -> bool:
    """Say whether what a peer sent first to a port without TLS is a TLS handshake.

    Then `SPEAKS_TLS` is what to tell of it: no PDU begins so (PS3.8 Table 9-11 and following).
    """
    return first[:1] == bytes([TLS_HANDSHAKE])


SPEAKS_TLS: Final = "the peer speaks TLS, and this port does not: tls_certificate is not set"


def explain(error: BaseException) -> str:
    """Say in plain words why a TLS connection failed; anything else in its own words."""
    cause: BaseException | None = error
    while cause is not None and not isinstance(cause, OSError):
        cause = cause.__cause__ or cause.__context__
    if isinstance(cause, ssl.SSLCertVerificationError):
        fallback = f"the certificate of the peer does not hold: {cause.verify_message}"
        return VERIFICATION.get(cause.verify_code, fallback)
    if isinstance(cause, ssl.SSLError):
        return REASONS.get(cause.reason or "", f"TLS failed: {cause.reason or cause}")
    if isinstance(cause, TimeoutError):
        return "no TLS handshake in time: the peer is silent, or waits for plain DICOM"
    if isinstance(cause, ConnectionError):
        return "the peer hung up during the TLS handshake: it may expect plain DICOM"
    return str(error)


def days_left(config: Config, now: float | None = None) -> int:
    """Count the whole days until the first certificate of our chain expires; below 0 if one has.

    Raises
    ------
    ConfigError
        The file cannot be read or holds no certificate.
    """
    ends = min(each.not_valid_after_utc for each in _chain(Path(config.tls_certificate)))
    at = datetime.now(UTC) if now is None else datetime.fromtimestamp(now, UTC)
    return (ends - at).days


def _chain(path: Path) -> list[x509.Certificate]:
    try:
        return x509.load_pem_x509_certificates(path.read_bytes())
    except OSError as error:
        raise ConfigError(f"tls_certificate: cannot read {path}: {error.strerror}") from error
    except ValueError as error:
        raise ConfigError(f"tls_certificate: {path} holds no certificate in PEM") from error


def _context(config: Config, protocol: int) -> ssl.SSLContext:
    context = ssl.SSLContext(protocol)
    context.minimum_version = ssl.TLSVersion.TLSv1_2  # RFC 8996: nothing older
    context.options |= ssl.OP_NO_RENEGOTIATION | ssl.OP_NO_COMPRESSION
    context.options |= ssl.OP_CIPHER_SERVER_PREFERENCE
    context.set_ciphers(CIPHERS[config.tls_profile])
    if config.tls_ca:
        _trust(context, config.tls_ca)
    if config.tls_certificate:
        _show(context, config.tls_certificate, config.tls_key or config.tls_certificate)
    return context


def _trust(context: ssl.SSLContext, authorities: str) -> None:
    try:
        context.load_verify_locations(authorities)
    except ssl.SSLError as error:
        raise ConfigError(f"tls_ca: {authorities} holds no certificates in PEM") from error
    except OSError as error:
        raise ConfigError(f"tls_ca: cannot read {authorities}: {error.strerror}") from error


def _show(context: ssl.SSLContext, certificate: str, key: str) -> None:
    _chain(Path(certificate))
    try:
        # An empty password: a key that has one must fail here, not ask on a terminal.
        context.load_cert_chain(certificate, key, password="")
    except ssl.SSLError as error:
        raise ConfigError(_unusable(error.reason, certificate, key)) from error
    except OSError as error:
        raise ConfigError(f"tls_key: cannot read {key}: {error.strerror}") from error


def _unusable(reason: str | None, certificate: str, key: str) -> str:
    if reason == "KEY_VALUES_MISMATCH":
        return f"tls_key: {key} is not the key of the certificate {certificate}"
    if reason in {"EE_KEY_TOO_SMALL", "CA_MD_TOO_WEAK", "CA_KEY_TOO_SMALL"}:
        return f"tls_certificate: {certificate} is too weak for the profile ({reason})"
    return f"tls_key: {key} holds no private key in PEM that has no password ({reason})"


def _stamps(config: Config) -> tuple[tuple[int, int, int] | None, ...]:
    return tuple(_stamp(each) for each in (config.tls_certificate, config.tls_key, config.tls_ca))


def _stamp(path: str) -> tuple[int, int, int] | None:
    try:
        found = Path(path).stat()
    except OSError:
        return None
    return (found.st_mtime_ns, found.st_ino, found.st_size)


def _linger(sock: socket.socket) -> None:
    """Let the peer read our alert: closing with something unread would send a reset after it."""
    deadline = time.monotonic() + LINGER_S
    try:
        sock.shutdown(socket.SHUT_WR)
        while (left_s := deadline - time.monotonic()) > 0:
            sock.settimeout(left_s)
            if not sock.recv(65_536):
                return
    except OSError:  # it is gone, or says nothing more
        return


def _expect_tls(first: bytes) -> None:
    if not first:
        raise SilentPeer("the peer hung up without a byte")
    if first[0] == ASSOCIATE_RQ:
        raise PeerError("the peer speaks plain DICOM, and this port speaks TLS only")
    if first in HTTP:
        raise PeerError("the peer speaks plain HTTP, and this port speaks DICOM over TLS")
    if first[0] != TLS_HANDSHAKE:
        raise PeerError(f"the peer speaks no TLS: it began with 0x{first.hex().upper()}")


_NO_VERSION = "no common TLS version: 1.2 or 1.3 is needed, and the peer has an older one"
_NO_CIPHER = "no common cipher suite: the peer has none of the profile (tls_profile)"
_SHOW_ONE = "the peer demands a certificate of ours, and we showed none: set tls_certificate"
_NOT_TRUSTED = "the peer does not trust our certificate: its authority is not in the peer's list"
REASONS: Final = {
    "WRONG_VERSION_NUMBER": "the peer answers, but not in TLS: probably a port for plain DICOM",
    "RECORD_LAYER_FAILURE": "the peer answers, but not in TLS: probably a port for plain DICOM",
    "HTTP_REQUEST": "the peer speaks plain HTTP, not TLS",
    "UNSUPPORTED_PROTOCOL": _NO_VERSION,
    "TLSV1_ALERT_PROTOCOL_VERSION": _NO_VERSION,
    "NO_SHARED_CIPHER": _NO_CIPHER,
    "SSLV3_ALERT_HANDSHAKE_FAILURE": (
        "the peer ended the TLS handshake: no common cipher suite, or it demands a certificate"
    ),
    "TLSV1_ALERT_INSUFFICIENT_SECURITY": _NO_CIPHER,
    "PEER_DID_NOT_RETURN_A_CERTIFICATE": "the peer showed no certificate, and one is required",
    "TLSV13_ALERT_CERTIFICATE_REQUIRED": _SHOW_ONE,
    "TLSV1_ALERT_UNKNOWN_CA": _NOT_TRUSTED,
    "SSLV3_ALERT_CERTIFICATE_UNKNOWN": "the peer does not accept our certificate",
    "SSLV3_ALERT_BAD_CERTIFICATE": "the peer does not accept our certificate",
    "SSLV3_ALERT_CERTIFICATE_EXPIRED": "the peer says that our certificate has expired",
    "SSLV3_ALERT_CERTIFICATE_REVOKED": "the peer says that our certificate is revoked",
    "UNEXPECTED_EOF_WHILE_READING": (
        "the peer hung up during the TLS handshake: it may expect plain DICOM, or no longer wish"
        " to talk to us"
    ),
}
VERIFICATION: Final = {  # X509_V_ERR of OpenSSL
    9: "the certificate of the peer is not valid yet: are the clocks right?",
    10: "the certificate of the peer has expired",
    18: "the certificate of the peer is self-signed, and not in tls_ca",
    19: "the authority of the peer's certificate is not in tls_ca",
    20: "the authority of the peer's certificate is not in tls_ca",
    21: "the authority of the peer's certificate is not in tls_ca",
    23: "the certificate of the peer is revoked",
    26: "the certificate of the peer is for another purpose: its extended key usage",
    62: "the certificate of the peer names another host than we call (tls_check_hostname)",
    64: "the certificate of the peer names another address than we call (tls_check_hostname)",
    66: "the key of the peer's certificate is too short for the profile (tls_profile)",
}
