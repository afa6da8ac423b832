"""The TLS files that a configuration names, tried as the node will use them: an edit that breaks them is refused."""

from __future__ import annotations

import ssl
from pathlib import Path
from typing import Any

from node.config.checks import Finding
from node.config.schema import Config
from node.config.tree import Node

_MISMATCH = "KEY_VALUES_MISMATCH"


def tls_faults(config: Config, root: Node) -> list[Finding]:
    """What is wrong with them: not there, not PEM, a key of another certificate or under a passphrase."""
    places: list[tuple[tuple[str, ...], Any]] = [(("node", "tls"), config.node.tls)]
    for name, destination in config.destinations.items():
        places.append((("destinations", name, "tls"), getattr(destination, "tls", None)))
    found: list[Finding] = []
    for keys, tls in places:
        if tls is None:
            continue
        missing = _missing(keys, tls, root)
        found += missing or _unusable(keys, tls, root)
    return found


def _missing(keys: tuple[str, ...], tls: Any, root: Node) -> list[Finding]:
    found = []
    for key, value in tls.model_dump().items():
        if value is None:
            continue
        try:
            with Path(value).open("rb"):
                continue
        except OSError as error:
            hint = "relative paths start at the working directory"
            found.append(_at(root, (*keys, key), f"the file cannot be read: {error.strerror}", hint))
    return found


def _unusable(keys: tuple[str, ...], tls: Any, root: Node) -> list[Finding]:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    found = []
    if tls.certificate is not None:
        try:
            context.load_cert_chain(tls.certificate, tls.key, password="")  # else OpenSSL asks the terminal
        except ssl.SSLError as error:
            if error.reason == _MISMATCH:
                message, hint = "this is not the key of `certificate`", "name the key that it was made with"
            else:
                message = "certificate and key cannot be used"
                hint = "both are PEM, the certificate first in its file, and the key has no passphrase"
            found.append(_at(root, (*keys, "key"), message, hint))
    if tls.authorities is not None:
        try:
            context.load_verify_locations(tls.authorities)
        except ssl.SSLError:
            hint = "it is PEM: one certificate after the other"
            found.append(_at(root, (*keys, "authorities"), "no certificate can be read from this file", hint))
    return found


def _at(root: Node, keys: tuple[str, ...], message: str, hint: str) -> Finding:
    node = root
    for key in keys:
        node = node.get(key) or node
    return Finding(node.line, node.column, ".".join(keys), message, hint)
