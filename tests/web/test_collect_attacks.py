"""What other pages, other programs and texts may try: refused, or shown as text."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from http.client import HTTPConnection
from http.server import BaseHTTPRequestHandler, HTTPServer
from typing import Any
from urllib.parse import urlsplit

import httpx
import pytest

from mlx_dpo.web.markdown_html import markdown_to_html
from tests.browser import Browser
from tests.web.collect_server_process import CollectServer, CollectView, collect_server, wait_for

NAME = "<img src=x onerror=alert(1)>"
TRAINING = ("/api/training", "/api/training/report", "/api/comparisons/revealed", "/report-assets/charts.js")
CHANGES = (*(f"/api/training/{action}" for action in ("start", "stop", "resume", "adapter")), "/api/comparisons")
SHORT = ("--max-tokens", "4")
USER = [{"role": "user", "content": "Hi"}]
SCRIPTS = (
    "<script>alert(1)</script>",
    "<img src=x onerror=alert(1)>",
    "[link](javascript:alert(1)) [data](data:text/html,<script>alert(1)</script>)",
    "![image](http://127.0.0.1:9/x.png) <a href='javascript:alert(1)' onclick=alert(1)>a</a>",
    '<svg onload=alert(1)> <iframe src="javascript:alert(1)"></iframe> <style>* { display: none }</style>',
    '```"><script>alert(1)</script>\ncode\n```',
    "[a](<https://x.org/\"onmouseover=alert(1)> 'title\"onclick=alert(1)')",
    "<https://x.org/?q=<script>alert(1)</script>> <javascript:alert(1)>",
    "\u202etxt.exe\u202c \x00\x1b[31m\u2066 &lt;script&gt; &#60;script&#62;",
)


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[CollectServer]:
    folder = tmp_path_factory.mktemp("attacks") / NAME
    folder.mkdir()
    with collect_server(folder, *SHORT) as started:
        started.wait_until_loaded()
        yield started


@pytest.fixture
def client(server: CollectServer) -> Iterator[httpx.Client]:
    with server.client() as client:
        yield client
        assert client.get("/api/state").status_code == 200  # the server is as well as before


@pytest.mark.parametrize(
    "headers",
    [
        {"Host": "evil.example:80"},
        {"Host": "127.0.0.1"},
        {"Host": ""},
        {"Origin": "http://evil.example"},
        {"Origin": "null"},
        {"Origin": "http://127.0.0.1:1"},
        {"Cookie": ""},
        {"Cookie": "mlx-dpo=x"},
    ],
)
@pytest.mark.parametrize("path", ["/", "/assets/collect.js", "/api/state", "/api/prompts/0", "/api/rows", *TRAINING])
def test_refused_requests(client: httpx.Client, headers: dict[str, str], path: str) -> None:
    assert client.get(path, headers=headers).status_code == 403


@pytest.mark.parametrize("path", ["/api/answers", "/api/verdicts", "/api/verdicts/remove", *CHANGES])
def test_a_post_names_the_page_that_sent_it(server: CollectServer, client: httpx.Client, path: str) -> None:
    request = client.build_request("POST", path, json={})
    del request.headers["Origin"]
    assert client.send(request).status_code == 403
    assert client.post(path, json={}, headers={"Origin": "http://evil.example"}).status_code == 403
    assert httpx.post(server.address + path, json={}, headers={"Origin": server.address}).status_code == 403


@pytest.mark.parametrize("token", ["", "x", "é", "%00", "' or 1"])
def test_wrong_token(server: CollectServer, token: str) -> None:
    answer = httpx.get(f"{server.address}/", params={"token": token})
    assert answer.status_code == 403 and "set-cookie" not in answer.headers


TRAVERSALS = (
    "/assets/../page_app.py",
    "/assets/..%2fpage_app.py",
    "/assets/%2e%2e/page_app.py",
    "/assets/%2e%2e%2fpage_app.py",
    "/assets/..",
    "/assets/",
    "/assets//etc/passwd",
    "/assets/%2fetc%2fpasswd",
    "/assets/collect.js%00",
    "/assets/..\\page_app.py",
)


@pytest.mark.parametrize("path", TRAVERSALS)
def test_no_file_but_the_assets(server: CollectServer, client: httpx.Client, path: str) -> None:
    address = urlsplit(server.address)
    connection = HTTPConnection(str(address.hostname), address.port)  # sends the path as it is
    cookie = "; ".join(f"{name}={value}" for name, value in client.cookies.items())
    connection.request("GET", path, headers={"Cookie": cookie})
    answer = connection.getresponse()
    assert answer.status == 404 and b"import" not in answer.read()
    connection.close()


def test_headers(server: CollectServer, client: httpx.Client) -> None:
    signed_in = httpx.get(server.url)
    cookie = signed_in.headers["set-cookie"]
    assert "HttpOnly" in cookie and "SameSite=strict" in cookie
    for path in ("/", "/assets/collect.js", "/api/state", "/nowhere"):
        headers = client.get(path).headers
        policy = headers["content-security-policy"]
        assert "default-src 'none'" in policy and "unsafe" not in policy and "*" not in policy
        assert headers["x-content-type-options"] == "nosniff" and headers["referrer-policy"] == "no-referrer"
        assert "access-control-allow-origin" not in headers and "frame-ancestors 'none'" in policy


def verdict(**values: Any) -> dict[str, Any]:
    return {"verdict": {"messages": USER, "answers": ["a", "b"], "kind": "choice", "index": 0, **values}}


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/api/answers", "not JSON"),
        ("/api/answers", "[1]"),
        ("/api/answers", "[" * 200_000),
        ("/api/answers", b"\xff\xfe{}"),
        ("/api/answers", b'"' + b"x" * 4_100_000 + b'"'),
        ("/api/answers", {}),
        ("/api/answers", {"messages": "Hi"}),
        ("/api/answers", {"messages": [{"role": "user", "content": ["Hi"]}]}),
        ("/api/answers", {"messages": [{"role": ["user"], "content": "Hi"}]}),
        ("/api/answers", {"messages": [{"role": "root", "content": "Hi"}, *USER]}),
        ("/api/answers", '{"messages": [{"role": "user", "content": "\\ud800"}]}'),
        ("/api/answers", {"messages": USER, "num_answers": 5}),
        ("/api/answers", {"messages": USER, "num_answers": True}),
        ("/api/answers", {"messages": USER, "num_answers": "2"}),
        ("/api/answers", {"messages": USER, "max_tokens": 8193}),
        ("/api/answers", {"messages": USER, "max_tokens": 10**400}),
        ("/api/answers", {"messages": USER, "max_tokens": 0}),
        ("/api/answers", {"messages": USER, "max_tokens": None}),
        ("/api/answers", {"messages": USER, "temperature": float("nan")}),
        ("/api/answers", {"messages": USER, "temperature": float("inf")}),
        ("/api/answers", {"messages": USER, "temperature": 10**400}),
        ("/api/answers", {"messages": USER, "temperature": -1}),
        ("/api/answers", {"messages": USER, "temperature": [1]}),
        ("/api/answers", {"messages": USER, "compare": True}),
        ("/api/verdicts", {}),
        ("/api/verdicts", verdict(kind=["choice"])),
        ("/api/verdicts", verdict(kind={})),
        ("/api/verdicts", verdict(index=True)),
        ("/api/verdicts", verdict(index=-1)),
        ("/api/verdicts", verdict(index=0.0)),
        ("/api/verdicts", verdict(answers=["a", 1])),
        ("/api/verdicts", verdict(answers=["a", "a"])),
        ("/api/verdicts", {**verdict(), "comparison": ["x"], "verdict": None}),
        ("/api/verdicts/remove", {"ids": "all"}),
        ("/api/verdicts/remove", {"ids": [1, None]}),
    ],
    ids=lambda value: str(value)[:60].encode("ascii", "replace").decode(),
)
def test_wrong_requests(server: CollectServer, client: httpx.Client, path: str, body: Any) -> None:
    content = json.dumps(body) if isinstance(body, dict) else body
    answer = client.post(path, content=content)
    assert answer.status_code == 400 and answer.json()["message"]
    assert server.rows() == []


@pytest.mark.parametrize("text", SCRIPTS)
def test_markdown_makes_no_markup_of_html(text: str) -> None:
    html = markdown_to_html(text)
    for tag in ("<script", "<img", "<svg", "<iframe", "<style", 'href="javascript', 'href="data', '" on'):
        assert tag not in html.lower()


@pytest.fixture
def view(server: CollectServer, browser: Browser) -> Iterator[CollectView]:
    opened = server.open_page(browser)
    yield opened
    assert opened.opened.errors == [] and opened.dialogs == []
    assert {url.split("/")[2] for url in opened.opened.requests} == {server.address.split("/")[2]}
    opened.page.close()


def assert_no_markup(view: CollectView) -> None:
    tags = view.page.evaluate("[...document.querySelectorAll('main *')].map((node) => node.tagName)")
    assert not {"SCRIPT", "IMG", "SVG", "IFRAME", "STYLE"} & set(tags)
    scripts = "main [onerror], main [onload], main [onclick], main [onmouseover], main a[href^='javascript:'], [style]"
    assert view.page.locator(scripts).count() == 0


def test_scripts_in_prompts_and_edits_are_text(server: CollectServer, view: CollectView) -> None:
    view.page.locator("#prompt:focus").wait_for()
    assert NAME in view.page.locator("#output").inner_text()
    text = "\n\n".join(SCRIPTS).replace("\x00", "")
    for _ in range(2):
        view.page.locator("#prompt").fill(text)
        view.press("Enter")
        view.wait_for_answers()
        assert_no_markup(view)
        view.press("e", "1")
        view.page.locator(".editor").fill(text)
        view.press("Control+Enter")  # the edit continues the conversation, rendered by the server
        view.wait_for_status("Saved.")
        assert_no_markup(view)
    assert "<script>alert(1)</script>" in view.turns()[1]
    assert [row["chosen"] for row in server.rows()] == [text, [{"role": "assistant", "content": text}]]


def test_scripts_in_answers_are_text(view: CollectView) -> None:
    answers = [
        {"index": i, "text": text, "html": markdown_to_html(text), "finish_reason": "stop", "num_tokens": 1}
        for i, text in enumerate(("\n\n".join(SCRIPTS), "plain"))
    ]
    events = (
        ("begin", {"num_answers": 2, "html": ["Hi"]}),
        ("answers", {"answers": answers}),
        ("end", {"comparison": None}),
    )
    body = "".join(f"event: {name}\ndata: {json.dumps(data)}\n\n" for name, data in events)
    view.page.route("**/api/answers", lambda route: route.fulfill(body=body, content_type="text/event-stream"))
    view.ask("Hi")
    assert_no_markup(view)
    assert "<script>alert(1)</script>" in view.answers()[0]
    links = view.page.locator(".answer a")
    assert {links.nth(i).get_attribute("target") for i in range(links.count())} == {"_blank"}


class OtherSite(BaseHTTPRequestHandler):
    """A page of another site, which links to the printed address and sends requests to the server."""

    address = link = row_id = ""

    def do_GET(self) -> None:
        html = f"""<!doctype html><meta charset=utf-8><link rel=icon href=data:,><a href="{self.link}">open</a><script>
        const body = '{{"ids": ["{self.row_id}"]}}';
        const options = {{method: "POST", body, credentials: "include", mode: "no-cors"}};
        Promise.allSettled([fetch("{self.address}/api/verdicts/remove", options), fetch("{self.address}/api/state")])
          .then((results) => {{ document.title = results.map((result) => result.status).join(); }});
        </script><iframe src="{self.address}/"></iframe>"""
        self.send_response(200)
        self.send_header("Content-Type", "text/html")
        self.end_headers()
        self.wfile.write(html.encode())

    def log_message(self, *arguments: Any) -> None:
        pass


def test_another_site_can_link_to_the_page_and_do_nothing_else(
    server: CollectServer, client: httpx.Client, browser: Browser
) -> None:
    OtherSite.address, OtherSite.link = server.address, server.url
    (OtherSite.row_id,) = client.post("/api/verdicts", json=verdict()).json()["ids"]
    before = server.output.read_bytes()
    site = HTTPServer(("127.0.0.1", 0), OtherSite)
    threading.Thread(target=site.serve_forever, daemon=True).start()
    try:
        view = CollectView(browser.open_url(f"http://localhost:{site.server_port}/"))
        view.page.locator("a").click()
        view.page.locator("#prompt:focus").wait_for()
        assert view.page.url == f"{server.address}/"
        view.page.goto(f"http://localhost:{site.server_port}/")  # now the browser has the cookie
        wait_for(lambda: view.page.title().endswith("rejected"))  # it can't read the state
        assert view.page.frames[1].locator("#prompt").count() == 0
        assert server.output.read_bytes() == before
        view.page.close()
    finally:
        site.shutdown()
        site.server_close()
        client.post("/api/verdicts/remove", json={"ids": [OtherSite.row_id]})
    assert OtherSite.row_id.encode() in before and OtherSite.row_id.encode() not in server.output.read_bytes()
