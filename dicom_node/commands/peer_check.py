"""The doctor at a destination: what is wrong with it, and what to do, in plain language.

Knows what the errors of our SCU and of STOW-RS mean to who set the destination up. Nothing is
stored there: an association is asked for, with a C-ECHO on it, or a list of studies over HTTP.
"""

import socket
import ssl
import time
from collections.abc import Iterator
from dataclasses import replace
from email.utils import parsedate_to_datetime
from typing import Final

from dicom_node import scu
from dicom_node.config import Config, Destination
from dicom_node.config.sources import Source
from dicom_node.delivery import proof
from dicom_node.errors import NodeError, PeerError
from dicom_node.network import outgoing
from dicom_node.network.requestor import CALLED_UNKNOWN, CALLING_UNKNOWN, Offer, Rejected
from dicom_node.scu import stow
from dicom_node.ways_in.fetching import GET, MOVE

SKEW_S: Final = 60.0  # from which clocks that differ are told
PROBE_S: Final = 5.0
EXPLICIT: Final = "1.2.840.10008.1.2.1"
WRITTEN: Final = (  # what most destinations get, whatever their profile
    "1.2.840.10008.5.1.4.1.1.66.4",
    "1.2.840.10008.5.1.4.1.1.88.34",
    "1.2.840.10008.5.1.4.1.1.88.22",
)


def look(config: Config, destination: Destination) -> Iterator[str]:
    """Say how a destination is.

    Raises
    ------
    PeerError
        It cannot be used as it is set; the message says what to do about it.
    """
    yield from (_web if destination.url else _peer)(config, destination)


def _peer(config: Config, destination: Destination) -> Iterator[str]:
    offers = [Offer(scu.VERIFICATION, outgoing.SYNTAXES)]
    offers += [Offer(each, (EXPLICIT,)) for each in WRITTEN]
    asked = proof.offers(destination)
    try:
        caller = scu.Caller.of(config, destination)
        with scu.session(destination, [*offers, *asked], caller) as opened:
            if opened.takes(scu.VERIFICATION):
                opened.echo()
            known = {each.abstract_syntax for each in offers + asked if _takes(opened, each)}
    except PeerError as error:
        raise PeerError(f"{error}{_advice(config, destination, error)}") from error
    yield "answers C-ECHO" if scu.VERIFICATION in known else "takes an association, but no C-ECHO"
    refused = [outgoing.name(each) for each in WRITTEN if each not in known]
    if refused:
        yield f"it does not take {', '.join(refused)}: choose a profile without"
    yield from _proof(config, destination, known)


def source(config: Config, source: Source) -> Iterator[str]:
    """Say how a source is that studies are fetched from; raises as `look`."""
    if source.peer.url:
        yield from _web(config, replace(source.peer, proof="query"))
        return
    retrieve = GET if source.method == "c-get" else MOVE
    offers = [Offer(each, outgoing.SYNTAXES) for each in (scu.STUDY_ROOT_FIND, retrieve)]
    try:
        caller = scu.Caller.of(config, source.peer)
        with scu.session(source.peer, offers, caller) as opened:
            refused = [each.abstract_syntax for each in offers if not _takes(opened, each)]
    except PeerError as error:
        raise PeerError(f"{error}{_advice(config, source.peer, error)}") from error
    if refused:
        raise PeerError(f"{source} does not serve {', '.join(map(outgoing.name, refused))}")
    yield f"finds studies and sends them by {source.method}"
    if retrieve == MOVE:
        us = f"{config.ae_title} at port {config.dicom_port}"
        yield f"to send them here it must know {us}"


def _takes(opened: scu.Session, offer: Offer) -> bool:
    return opened.takes(offer.abstract_syntax)


def _proof(config: Config, destination: Destination, known: set[str]) -> Iterator[str]:
    """Say what will make a delivery delivered."""
    if destination.proof == "none":
        yield "nothing is asked for as proof: what it stores stays sent-unproven"
        return
    commits, finds = scu.COMMITMENT in known, scu.STUDY_ROOT_FIND in known
    if destination.proof == "commitment" and not commits:
        raise PeerError(
            f"{destination} does not support storage commitment, and proof is commitment:"
            " set proof = auto"
        )
    if commits:
        us = f"{config.ae_title} at port {config.dicom_port}"
        yield f"proof by storage commitment; to report it must know {us}"
    elif destination.proof != "query":
        yield "storage commitment is not supported"
    if finds:
        yield "proof by C-FIND"
    elif not commits:
        yield "no proof at all: what it stores stays sent-unproven"


def _web(config: Config, destination: Destination) -> Iterator[str]:
    try:
        headers = stow.probe(destination, config)
    except PeerError as error:
        raise PeerError(f"{error}{_web_advice(destination, error)}") from error
    yield f"answers QIDO-RS: {headers.get('Server', 'no name')}"
    skew_s = _skew_s(headers.get("Date", ""))
    if abs(skew_s) > SKEW_S:
        later = "ahead of" if skew_s > 0 else "behind"
        raise PeerError(f"{destination}: its clock is {abs(skew_s):.0f} s {later} ours")
    if destination.proof == "none":
        yield "nothing is asked for as proof: what it stores stays sent-unproven"


def _skew_s(date: str) -> float:
    """Say how far the clock of a server is ahead, by its Date header (RFC 9110 6.6.1)."""
    try:
        return parsedate_to_datetime(date).timestamp() - time.time()
    except (TypeError, ValueError):  # there is none, or it is none
        return 0.0


def _advice(config: Config, destination: Destination, error: PeerError) -> str:
    cause = error.__cause__
    if isinstance(cause, Rejected) and cause.why == CALLED_UNKNOWN:
        return f"; it does not call itself {destination.ae_title}: correct its ae_title"
    if isinstance(cause, Rejected) and cause.why == CALLING_UNKNOWN:
        return f"; it must be told of us: AE title {config.ae_title} and our address"
    if isinstance(cause, ConnectionRefusedError):
        return f"; nothing listens there: is port {destination.port} right, and the program up?"
    if isinstance(cause, TimeoutError):
        return "; is the host right, and does a firewall let us through?"
    if destination.tls and _speaks_plain(config, destination):
        return "; it speaks plain DICOM at this port: set tls = false, or give its port for TLS"
    return _tls_advice(destination.host, destination.port, secured=destination.tls, error=error)


def _web_advice(destination: Destination, error: PeerError) -> str:
    url = stow.address(destination)
    secured = destination.url.startswith("https:")
    return _tls_advice(*url, secured=secured, error=error)


def _tls_advice(host: str, port: int, *, secured: bool, error: PeerError) -> str:
    if secured or "TLS" in str(error) or not _speaks_tls(host, port):
        return ""
    return "; it speaks TLS at this port: set tls = true, or begin the url with https://"


def _speaks_tls(host: str, port: int) -> bool:
    """Try a TLS handshake; whose certificate it is does not matter here."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    try:
        with (
            socket.create_connection((host, port), PROBE_S) as sock,
            context.wrap_socket(sock, server_hostname=host),
        ):
            return True
    except ssl.SSLError as error:
        return "ALERT" in (error.reason or "")  # it knows TLS, and does not want ours
    except OSError:
        return False


def _speaks_plain(config: Config, destination: Destination) -> bool:
    plain = replace(destination, tls=False)
    limit_s = min(config.network_timeout_s, PROBE_S)
    try:
        scu.echo(plain, calling_ae=config.ae_title, timeout_s=limit_s)
    except NodeError as error:
        return isinstance(error.__cause__, Rejected)  # a rejection is DICOM too
    return True
