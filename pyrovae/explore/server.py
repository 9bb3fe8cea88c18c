"""The server: a session behind one page, for the person at this machine and nobody else.

It listens on 127.0.0.1 alone. A page elsewhere that knows the port gets nothing: the name that
was asked for must be this machine's (a DNS name may be made to point here), an `Origin` must be
our own, and every request carries a token that only the printed address has. No path of a request
is ever a file's.
"""

__all__ = ["Server"]

import hmac
import json
import re
import secrets
import sys
import threading
import traceback
from collections.abc import Callable
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from importlib.resources import files
from inspect import signature
from typing import Any
from urllib.parse import parse_qs

from pyrovae.errors import InputError, PyrovaeError, first_line
from pyrovae.explore.session import Session
from pyrovae.page import STYLE

HOST = "127.0.0.1"
# What a request may hold in bytes: an image, or plain values.
UPLOAD_LIMIT, JSON_LIMIT = 32 * 2**20, 2**22
# How many seconds a connection may say nothing.
PATIENCE = 30
TOKEN = "X-Pyrovae-Token"
POLICY = (
    "default-src 'none'; script-src 'nonce-{nonce}'; style-src 'nonce-{nonce}'; img-src data:; "
    "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
HEADERS = {
    "Cache-Control": "no-store",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
}
# What the page asks for by name with plain values, and the files that it sends as they are.
QUESTIONS: dict[str, Callable[..., dict[str, Any]]] = {
    "describe": Session.describe,
    "thumbnails": Session.thumbnails,
    "plane": Session.plane,
    "example": Session.encode_example,
    "numbers": Session.encode_numbers,
    "measure": Session.measure,
    "decode": Session.decode,
    "interpolate": Session.interpolate,
    "draw": Session.draw,
}
UPLOADS: dict[str, Callable[..., dict[str, Any]]] = {
    "file": Session.encode_file,
    "drawing": Session.encode_drawing,
}


class Server(ThreadingHTTPServer):
    """Serves a session at `url` until it is told to stop.

    Args:
        session: The session. One question is answered at a time.
        port: The port, or 0 for one that is free.

    Raises:
        InputError: If the port cannot be had.
    """

    daemon_threads = True

    def __init__(self, session: Session, port: int = 0) -> None:
        self.session = session
        self.token = secrets.token_urlsafe(16)
        self.lock = threading.Lock()
        try:
            super().__init__((HOST, port), _Handler)
        except (OSError, OverflowError) as error:
            reason = getattr(error, "strerror", None) or error
            raise InputError(
                f"Port {port} cannot be used ({reason}).",
                "Choose another --port, or leave it out for one that is free.",
            ) from error

    @property
    def url(self) -> str:
        """The address of the page, its token included."""
        return f"http://{HOST}:{self.server_port}/?token={self.token}"

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Says nothing of a page that was closed while it was answered."""
        if not isinstance(sys.exception(), ConnectionError | TimeoutError):
            super().handle_error(request, client_address)


class _Refused(Exception):
    """A request that is not answered, with the status that says so."""

    def __init__(self, status: HTTPStatus, why: str) -> None:
        super().__init__(why)

        self.status = status


class _Handler(BaseHTTPRequestHandler):
    server: Server  # pyright: ignore[reportIncompatibleVariableOverride]
    protocol_version = "HTTP/1.1"
    server_version, sys_version = "pyrovae", ""
    timeout = PATIENCE

    def do_GET(self) -> None:
        """The page."""
        self._respond(self._page)

    def do_POST(self) -> None:
        """A question of the page."""
        self._respond(self._answer)

    def log_message(self, format: str, *args: Any) -> None:
        """Nothing: the terminal is for what goes wrong."""

    def _respond(self, answer: Callable[[], None]) -> None:
        try:
            self._check_host()
            answer()
        except _Refused as refusal:
            # What was sent with it is not read, so no other request can follow it.
            self.close_connection = True
            self._send_json({"error": str(refusal)}, refusal.status)
        except PyrovaeError as error:
            self._send_json({"error": str(error)}, HTTPStatus.UNPROCESSABLE_ENTITY)
        except (ConnectionError, TimeoutError):
            raise
        except Exception as error:
            traceback.print_exc()
            self._send_json(
                {"error": f"This went wrong ({type(error).__name__}: {first_line(error)})."},
                HTTPStatus.INTERNAL_SERVER_ERROR,
            )

    # ── Who asks ──

    def _check_host(self) -> None:
        """Refuses another name than this machine's: forwarding may have changed the port."""
        host = self.headers.get("Host", "")
        if not re.fullmatch(r"(127\.0\.0\.1|localhost)(:\d+)?", host):
            raise _Refused(HTTPStatus.FORBIDDEN, "This page is served to 127.0.0.1 alone.")
        origin = self.headers.get("Origin")
        if origin is not None and origin != f"http://{host}":
            raise _Refused(HTTPStatus.FORBIDDEN, "Another page may not ask.")

    def _check_token(self, given: str) -> None:
        # As bytes: text that is not ASCII cannot be compared.
        if not hmac.compare_digest(given.encode(), self.server.token.encode()):
            raise _Refused(
                HTTPStatus.FORBIDDEN,
                "Open the address that pyrovae explore printed, token and all.",
            )

    # ── What is answered ──

    def _page(self) -> None:
        path, _, query = self.path.partition("?")
        if path != "/":
            raise _Refused(HTTPStatus.NOT_FOUND, "There is nothing here.")
        self._check_token(parse_qs(query).get("token", [""])[0])
        nonce = secrets.token_urlsafe(16)
        text = files("pyrovae.explore").joinpath("page.html").read_text("utf-8")
        content = text.replace("{{style}}", STYLE).replace("{{nonce}}", nonce).encode()
        policy = {"Content-Security-Policy": POLICY.format(nonce=nonce)}
        self._send(content, "text/html; charset=utf-8", HTTPStatus.OK, policy)

    def _answer(self) -> None:
        path, _, query = self.path.partition("?")
        name = path.removeprefix("/")
        if name not in QUESTIONS and name not in UPLOADS:
            raise _Refused(HTTPStatus.NOT_FOUND, "There is nothing here.")
        self._check_token(self.headers.get(TOKEN, ""))
        if name in UPLOADS:
            content = self._body(UPLOAD_LIMIT)
            label = _label(parse_qs(query).get("label"))
            self._ask(UPLOADS[name], {"content": content, "label": label})
        else:
            self._ask(QUESTIONS[name], _arguments(self._body(JSON_LIMIT)))

    def _ask(self, question: Callable[..., dict[str, Any]], given: dict[str, Any]) -> None:
        try:
            signature(question).bind(self.server.session, **given)
        except TypeError as error:
            raise InputError("The question is not understood.", "Reload the page.") from error
        with self.server.lock:
            found = question(self.server.session, **given)
        self._send_json(found, HTTPStatus.OK)

    def _body(self, limit: int) -> bytes:
        length = self.headers.get("Content-Length", "")
        if not re.fullmatch(r"\d{1,18}", length):
            raise _Refused(HTTPStatus.LENGTH_REQUIRED, "How much is sent is not said.")
        if int(length) > limit:
            raise _Refused(
                HTTPStatus.REQUEST_ENTITY_TOO_LARGE,
                f"The file has {int(length) / 2**20:,.0f} MiB, more than the {limit // 2**20} "
                "that are taken. Make it smaller.",
            )
        content = self.rfile.read(int(length))
        if len(content) < int(length):
            raise ConnectionAbortedError
        return content

    def _send_json(self, found: dict[str, Any], status: HTTPStatus) -> None:
        content = json.dumps(found, allow_nan=False).encode()
        self._send(content, "application/json", status, {})

    def _send(self, content: bytes, kind: str, status: HTTPStatus, more: dict[str, str]) -> None:
        self.send_response(status)
        for key, value in {**HEADERS, **more}.items():
            self.send_header(key, value)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(content)))
        if self.close_connection:
            self.send_header("Connection", "close")
        self.end_headers()
        self.wfile.write(content)


def _arguments(content: bytes) -> dict[str, Any]:
    try:
        found = json.loads(content, parse_constant=_no_constant)
    except (ValueError, RecursionError) as error:
        raise InputError("The question is no JSON.", "Reload the page.") from error
    if not isinstance(found, dict):
        raise InputError("The question is no object.", "Reload the page.")
    return found


def _no_constant(name: str) -> None:
    raise ValueError(name)


def _label(given: list[str] | None) -> int | None:
    if not given:
        return None
    if not re.fullmatch(r"-?\d{1,9}", given[0]):
        raise InputError(f"There is no label {given[0]!r}.", "Take one of the page's.")
    return int(given[0])
