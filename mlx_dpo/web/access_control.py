"""Who may use the page: the browser that has the token, from this machine, and no other page that it has open.

The token stands in the address once and is kept in a cookie. A page of another site that guesses the port sends another
`Origin`; one whose name was pointed at 127.0.0.1 (DNS rebinding) sends another `Host`. Both are refused.
"""

from __future__ import annotations

import hmac

from starlette.datastructures import MutableHeaders
from starlette.requests import Request
from starlette.responses import HTMLResponse, PlainTextResponse, Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

HOSTS = ("127.0.0.1", "localhost")
SAFE_METHODS = ("GET", "HEAD")
HEADERS = {
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; "
    "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cache-Control": "no-store",
}
SIGNED_IN = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta http-equiv="refresh" content="0;url=/">
<link rel="icon" href="/assets/icon.svg" type="image/svg+xml">
<title>mlx-dpo</title>
</head>
</html>
"""


class AccessControl:
    """Middleware that refuses requests without the token, and adds the headers that bind the page to this server."""

    def __init__(self, app: ASGIApp, *, token: str, port: int) -> None:
        """Wrap an application.

        Args:
            app: the application.
            token: the secret that the address has.
            port: the server's port.
        """
        self.app, self.token = app, token
        self.hosts = {f"{host}:{port}" for host in HOSTS}
        self.cookie = f"mlx-dpo-{port}"  # a browser sends cookies to all ports of a host

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a request, or refuse it."""
        if scope["type"] != "http":
            raise RuntimeError(f"unexpected connection of type {scope['type']}")
        request = Request(scope)
        response = self._refusal(request) or self._sign_in(request)

        async def send_with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                MutableHeaders(scope=message).update(HEADERS)
            await send(message)

        await (response or self.app)(scope, receive, send_with_headers)

    def _refusal(self, request: Request) -> Response | None:
        if request.headers.get("host") not in self.hosts:
            return _refuse("this address is not the one that mlx-dpo printed")
        origin = request.headers.get("origin")
        if origin is not None and origin not in {f"http://{host}" for host in self.hosts}:
            return _refuse("a page of another site sent this request")
        if request.method not in SAFE_METHODS and origin is None:
            return _refuse("the request doesn't name the page that sent it")
        if not (self._is_token(request.cookies.get(self.cookie)) or self._is_token(request.query_params.get("token"))):
            return _refuse("the token is missing or wrong: open the address that mlx-dpo printed")
        return None

    def _sign_in(self, request: Request) -> Response | None:
        """Keep the token of the address in a cookie, and leave that address, which a history would show."""
        if "token" not in request.query_params:
            return None
        # Not a redirect: a browser sends no SameSite cookie to one if another site has linked here, such as a terminal
        # in a page. It does when this response leads on.
        response = HTMLResponse(SIGNED_IN)
        response.set_cookie(self.cookie, self.token, httponly=True, samesite="strict")
        return response

    def _is_token(self, text: str | None) -> bool:
        return text is not None and hmac.compare_digest(text.encode(), self.token.encode())


def _refuse(reason: str) -> Response:
    return PlainTextResponse(f"Refused: {reason}.\n", status_code=403)
