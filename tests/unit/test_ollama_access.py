"""CORS and Host rules."""

import pytest

from kvsup.ollama.access import OriginRules, host_allowed, is_same_origin

HOST = "127.0.0.1:11434"


@pytest.mark.parametrize(
    "origin",
    [
        "http://localhost",
        "https://localhost:3000",
        "http://127.0.0.1:8080",
        "http://0.0.0.0",
        "app://obsidian.md",
        "tauri://localhost",
        "vscode-webview://x",
        "http://127.0.0.1:11434",
    ],
)
def test_origin_local_page_is_always_allowed(origin: str) -> None:
    """Pages of this machine and desktop shells need no entry."""
    assert OriginRules([]).allows(origin, HOST)


@pytest.mark.parametrize(
    "origin",
    ["https://evil.example", "http://localhost.evil.example", "null", "chrome-extension://x", ""],
)
def test_origin_foreign_page_is_refused(origin: str) -> None:
    """Everything else needs an entry, extensions too."""
    assert not OriginRules([]).allows(origin, HOST)


@pytest.mark.parametrize(
    ("entry", "origin", "allowed"),
    [
        (" HTTPS://A.example ", "https://a.example", True),
        ("https://a.example", "https://a.example:8443", False),
        ("https://*.a.example", "https://x.a.example", True),
        ("https://*.a.example", "https://a.example", False),
        ("ab*ba", "aba", False),
        ("chrome-extension://*", "chrome-extension://x", True),
        ("*", "anything", True),
    ],
)
def test_origin_entry_matches_exactly_or_around_its_star(
    entry: str, origin: str, allowed: object
) -> None:
    """One star stands for any text, the rest is compared as it is."""
    assert OriginRules([entry]).allows(origin, HOST) is allowed


@pytest.mark.parametrize(
    ("entry", "text"),
    [("https://*.*", "two"), ("a.example", "https://a.example"), ("x://y", "x://y")],
)
def test_origin_malformed_entry_raises(entry: str, text: str) -> None:
    """A rule that can match nothing is a mistake of the operator."""
    with pytest.raises(ValueError, match=text):
        OriginRules([entry])


def test_origin_same_as_host_gets_no_headers() -> None:
    """CORS does nothing for the server's own pages."""
    rules = OriginRules([])

    assert is_same_origin("https://me.example", "me.example")
    assert rules.allows("http://me.example", "me.example")
    assert rules.headers("http://me.example", "me.example") == []


def test_origin_allowed_page_is_named_in_headers() -> None:
    """A listed origin is echoed, with Vary; a star answers a star."""
    origin = "http://localhost:3000"

    assert OriginRules([]).headers(origin, HOST) == [
        ("Access-Control-Allow-Origin", origin),
        ("Vary", "Origin"),
    ]
    assert OriginRules(["*"]).headers(origin, HOST) == [("Access-Control-Allow-Origin", "*")]


def test_origin_preflight_lists_methods_and_headers() -> None:
    """Browsers may send what OpenAI's clients send, and ask again after twelve hours."""
    listed = dict(OriginRules([]).preflight_headers("app://x"))
    starred = dict(OriginRules(["*"]).preflight_headers("app://x"))

    assert listed["Access-Control-Allow-Origin"] == "app://x"
    assert listed["Access-Control-Allow-Methods"] == "GET,POST,PUT,PATCH,DELETE,HEAD,OPTIONS"
    assert listed["Access-Control-Max-Age"] == "43200"
    assert "X-Stainless-Runtime-Version" in listed["Access-Control-Allow-Headers"].split(",")
    assert listed["Vary"].startswith("Origin, ")
    assert starred["Access-Control-Allow-Origin"] == "*"
    assert "Vary" not in starred


@pytest.mark.parametrize(
    ("host", "allowed"),
    [
        ("", True),
        ("localhost:11434", True),
        ("LOCALHOST", True),
        ("box", True),
        ("x.local:80", True),
        ("a.internal", True),
        ("127.0.0.1:11434", True),
        ("[::1]:11434", True),
        ("::1", True),
        ("192.168.1.7", True),
        ("0.0.0.0", True),
        ("8.8.4.4", True),
        ("8.8.8.8", False),
        ("evil.example:11434", False),
        ("localhost.evil.example", False),
    ],
)
def test_host_on_loopback_must_be_this_machine(host: str, allowed: object) -> None:
    """A name that a stranger's DNS points at this machine is refused."""
    verdict = host_allowed(
        host, bound_to_loopback=True, own_names={"box"}, own_addresses={"8.8.4.4"}
    )

    assert verdict is allowed


def test_host_on_open_listener_is_not_checked() -> None:
    """Who listens on every address is reached by names that nobody here knows."""
    assert host_allowed("any.example", bound_to_loopback=False, own_names=(), own_addresses=())
