"""Requests of HTTP/1.1 as bytes, nearly right or not at all."""

from random import Random
from urllib.parse import quote_from_bytes

from .mutation import TEXTS, mangled

METHODS = (*[b"GET"] * 8, *[b"POST"] * 6, b"HEAD", b"PUT", b"DELETE", b"OPTIONS", b"X")
PATHS = (
    b"/",
    b"/login",
    b"/logout",
    b"/ledger",
    b"/ledger/verify",
    b"/studies/1.2.3",
    b"/studies/1.2.3/complete",
    b"/studies/1.2.3/jobs/1/overlay.png",
    b"/studies/1.2.3/jobs/1/seg.dcm",
    b"/static/style.css",
    b"/static/../app.py",
    b"/static/%2e%2e/app.py",
    b"/static/..%2fapp.py",
    b"/api/health",
    b"/api/studies/1.2.3",
    b"/api/studies/1.2.3/complete",
)


def make(random: Random, token: str) -> bytes:
    """Make one request."""
    path = random.choice(PATHS)
    if random.random() < 0.5:
        text = random.choice(TEXTS)
        text = quote_from_bytes(text).encode() if random.random() < 0.8 else text
        path = random.choice((path + b"?text=" + text, path + b"/" + text, b"/studies/" + text))
        path += random.choice((b"", b"&page=99999999999999", b"&state=x&after=-1", b"&job=" + text))
    body = _body(random)
    lines = [b"%s %s HTTP/1.1" % (random.choice(METHODS), path), b"Host: x", b"Connection: close"]
    if random.random() < 0.5:
        lines.append(b"Authorization: Bearer " + token.encode())
    if random.random() < 0.2:
        lines.append(b"Cookie: session=" + random.choice(TEXTS).replace(b"\r\n", b""))
    if random.random() < 0.1:
        lines.append(random.choice((b"Content-Encoding: gzip", b"Transfer-Encoding: chunked",
                                    b"Range: bytes=0-999999,1-2,-5", b"Expect: 100-continue",
                                    b"Upgrade: websocket", b"Content-Length: 99")))  # fmt: skip
    if body:
        lines.append(b"Content-Type: application/x-www-form-urlencoded")
        lines.append(b"Content-Length: %d" % len(body))
    made = b"\r\n".join(lines) + b"\r\n\r\n" + body
    return mangled(made, random, random.randint(1, 2)) if random.random() < 0.3 else made


def _body(random: Random) -> bytes:
    if random.random() < 0.5:
        return b""
    text = quote_from_bytes(random.choice(TEXTS)).encode()
    made = b"token=" + text + b"&form=" + text
    return made * random.choice((1, 1, 500)) + b"\xff" * random.choice((0, 0, 3))
