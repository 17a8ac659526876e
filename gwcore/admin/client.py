"""Asking a running gateway: what commands and `Gateway` say to its admin interface."""

from __future__ import annotations

import http.client
import socket

from gwcore.config.base import split_address
from gwcore.config.schema import Admin

TIMEOUT_S = 15.0  # a reload waits for all workers


def ask(admin: Admin, path: str, method: str = "GET") -> tuple[int, str]:
    """Status and text of an answer. OSError when nobody answers."""
    host, port = split_address(admin.address)
    connection = http.client.HTTPConnection(host, port or None, timeout=TIMEOUT_S)
    if not port:
        connection.sock = socket.socket(socket.AF_UNIX)
        connection.sock.settimeout(TIMEOUT_S)
        connection.sock.connect(host)
    headers = {"Authorization": f"Bearer {admin.token}"} if admin.token else {}
    try:
        connection.request(method, path, headers=headers)
        answer = connection.getresponse()
        return answer.status, answer.read().decode()
    finally:
        connection.close()
