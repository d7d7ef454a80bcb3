"""What the servers of both local web pages share: security headers and the check of the Host header."""

from __future__ import annotations

import re

LOCAL_HOSTS = ("127.0.0.1", "localhost", "::1")
# The page loads nothing from other origins, no other page can embed or read it, and no response is cached on disk.
SECURITY_HEADERS = {
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' blob: data:; "
    "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Referrer-Policy": "no-referrer",
    "Cache-Control": "no-store",
}


def is_local_host(header: str) -> bool:
    """Whether a Host header, with or without a port, names this machine.

    Rejecting others prevents DNS rebinding: a foreign page whose domain resolves to 127.0.0.1 would send its own name.
    """
    names = {f"[{host}]" if ":" in host else host for host in LOCAL_HOSTS}
    return re.sub(r":\d+$", "", header) in names
