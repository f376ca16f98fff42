"""Signing in and out, and who may send a form."""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime

import httpx
import pytest

from tallystick_server.app.configuration import Settings
from tallystick_server.app.database.connections import DatabaseUrls
from tallystick_server.app.services import HTTP_SERVER, service_names
from tallystick_server.http.console.pages.table import ACT_PAGES, PAGES
from tallystick_server.http.console.session import Sessions
from tests.support.callers import token_of
from tests.support.console import SESSION_KEY, SETTINGS, Person, Work
from tests.support.platform import ServedPlatform, serve_platform

POLICY = (
    "default-src 'none'; style-src 'self'; img-src 'self'; form-action 'self'; "
    "frame-ancestors 'none'; base-uri 'none'"
)


def cookie_of(response: httpx.Response) -> set[str]:
    """The attributes of the cookie that a response sets, without its value."""
    _, *attributes = response.headers["Set-Cookie"].split("; ")
    return {attribute.lower() for attribute in attributes}


def test_a_token_opens_a_session(platform: ServedPlatform) -> None:
    """The cookie is out of reach of scripts and other sites, and ends with the session."""
    person = Person(platform.url)
    response = person.sign_in(token_of("bob"))
    assert (response.status_code, response.headers["Location"]) == (303, "/console")
    assert cookie_of(response) == {"httponly", "samesite=strict", "path=/", "max-age=28800"}
    assert token_of("bob") not in response.headers["Set-Cookie"]
    assert person.get("/console/search").status_code == 200


@pytest.mark.parametrize("token", ["", "unknown-token-aaaaaaaa", "two words", "é", "x" * 1001])
def test_an_unknown_token_opens_none(platform: ServedPlatform, token: str) -> None:
    """It is rejected in words; no cookie is set, and the token is not on the page."""
    response = Person(platform.url).sign_in(token)
    assert response.status_code == 401
    assert "one of the platform&#39;s setting callers" in response.text
    assert "Set-Cookie" not in response.headers
    assert not token or token not in response.text


def test_every_page_needs_a_session(platform: ServedPlatform) -> None:
    """Without one each page leads to the sign-in, which leads back; an act does nothing."""
    person = Person(platform.url)
    paths = [f"/console/{path}".replace("{", "").replace("}", "").rstrip("/") for path in PAGES]
    for path in paths:
        response = person.get(path)
        assert response.status_code == 303
        location = httpx.URL(response.headers["Location"])
        assert (location.path, location.params["next"]) == ("/console/sign-in", path)
    for act_page in ACT_PAGES:
        for act in act_page.acts:
            response = person.http.post(
                f"/console/{act_page.path}/{act.name}", data={"reason": "x"}
            )
            assert response.headers["Location"] == "/console/sign-in?ended=1"


@pytest.mark.parametrize(
    ("next_path", "location"),
    [
        ("/console/payments?state=OPEN", "/console/payments?state=OPEN"),
        ("https://evil.example/", "/console"),
        ("//evil.example/", "/console"),
        ("/consoles", "/console"),
        ("/console/\\evil.example", "/console"),
        ("/console/\r\nSet-Cookie: x=y", "/console"),
        ("/console/sign-in", "/console"),
    ],
)
def test_signing_in_leads_to_the_console_only(
    platform: ServedPlatform, next_path: str, location: str
) -> None:
    """A link to the sign-in page cannot send a person elsewhere."""
    data = {"token": token_of("bob"), "next": next_path}
    response = httpx.post(f"{platform.url}/console/sign-in", data=data)
    assert response.headers["Location"] == location


def test_signing_out_ends_the_session(sign_in: Callable[[str], Person]) -> None:
    """The browser forgets the cookie, and a copy of it is worth nothing."""
    bob = sign_in("bob")
    (copy,) = bob.http.cookies.jar
    response = bob.act("/console/sign-out")
    assert (response.status_code, response.headers["Location"]) == (303, "/console/sign-in")
    assert "max-age=0" in cookie_of(response)
    stolen = {str(copy.name): str(copy.value)}
    url = bob.http.base_url.join("/console/search")
    assert httpx.get(url, cookies=stolen).status_code == 303


@pytest.mark.parametrize(
    "headers",
    [
        {"Sec-Fetch-Site": "cross-site"},
        {"Sec-Fetch-Site": "same-site"},
        {"Origin": "https://evil.example"},
        {"Origin": "null"},
    ],
)
def test_a_form_of_another_site_does_nothing(
    alice: Person, work: Work, headers: dict[str, str]
) -> None:
    """Neither signs in nor acts, even with the right CSRF token. The answer is a page."""
    forms = {
        "/console/sign-in": {"token": token_of("bob")},
        f"/console/breaks/{work.breaks[0]}/comment": {
            "csrf_token": alice.csrf_token(),
            "comment": "forged",
        },
    }
    for path, data in forms.items():
        response = alice.http.post(path, data=data, headers=headers)
        assert response.status_code == 403
        assert "Only a page of this console may send this form." in response.text
    assert "forged" not in alice.get(f"/console/breaks/{work.breaks[0]}").text


def test_a_form_of_the_same_host_by_another_scheme_does_nothing(alice: Person) -> None:
    """A page without TLS is not one of a console with TLS, nor the reverse."""
    origin_of_page = str(alice.http.base_url).rstrip("/")
    for origin, status in ((origin_of_page, 303), (origin_of_page.replace("http:", "https:"), 403)):
        data = {"token": token_of("bob")}
        response = alice.http.post("/console/sign-in", data=data, headers={"Origin": origin})
        assert response.status_code == status


def test_every_act_needs_the_token_of_the_session(
    alice: Person, sign_in: Callable[[str], Person]
) -> None:
    """Without the CSRF token, or with that of another session, no act is sent."""
    paths = [f"/console/{page.path}/{act.name}" for page in ACT_PAGES for act in page.acts]
    others_token = sign_in("bob").csrf_token()
    for path in [*paths, "/console/sign-out"]:
        for data in ({}, {"csrf_token": ""}, {"csrf_token": others_token}):
            response = alice.http.post(path, data={**data, "reason": "x", "comment": "x"})
            assert response.status_code == 403
            assert "The form belongs to another session." in response.text
    assert alice.get("/console/search").status_code == 200


def test_pages_cannot_be_framed_stored_or_scripted(alice: Person, work: Work) -> None:
    """Every kind of answer has the policy; static files are not sniffed."""
    paths = ["sign-in", "search", "breaks", "breaks/none", f"payouts/{work.awaiting_payouts[0]}"]
    for path in paths:
        headers = alice.get(f"/console/{path}").headers
        assert headers["Content-Security-Policy"] == POLICY
        assert headers["Cache-Control"] == "no-store"
        assert headers["Referrer-Policy"] == "same-origin"
        assert headers["X-Content-Type-Options"] == "nosniff"
    style = alice.get("/console/static/console.css").headers
    assert style["Content-Type"] == "text/css; charset=utf-8"
    assert style["X-Content-Type-Options"] == "nosniff"


def test_a_token_that_is_withdrawn_ends_the_session(platform: ServedPlatform) -> None:
    """As soon as the platform rejects the token, the person must sign in again."""
    sessions = Sessions(SESSION_KEY, 60, lambda: datetime.now(UTC))
    cookies = {"tallystick-console": sessions.begin("withdrawn-token-aaaaaaaa")}
    response = httpx.get(f"{platform.url}/console/payments", cookies=cookies)
    assert response.headers["Location"] == "/console/sign-in?ended=1"
    assert "max-age=0" in cookie_of(response)


def test_with_tls_the_cookie_is_sent_by_tls_only(platform: ServedPlatform) -> None:
    """Its name has the prefix that only a secure cookie of this host may have."""
    settings = SETTINGS.replace(
        http__tls_terminated_by_proxy=True, service_addresses=platform.settings.service_addresses
    )
    with serve_platform(platform.databases, settings, (*service_names(), HTTP_SERVER)) as encrypted:
        response = Person(encrypted.url).sign_in(token_of("bob"))
    assert response.headers["Set-Cookie"].startswith("__Host-tallystick=")
    assert "secure" in cookie_of(response)


def test_without_authentication_only_this_machine_signs_in(database: DatabaseUrls) -> None:
    """No token is asked for, and a page of another host reads and does nothing."""
    settings = Settings().replace(console__enabled=True)
    names = (*service_names(), HTTP_SERVER)
    with serve_platform(database, settings, names) as platform:
        person = Person(platform.url)
        assert "you need no token" in person.get("/console/sign-in").text
        assert person.sign_in("").status_code == 303
        assert person.get("/console/trial-balance").status_code == 200
        response = person.http.get("/console/trial-balance", headers={"Host": "evil.example"})
        assert response.status_code == 403


def test_the_console_is_off_by_default(database: DatabaseUrls) -> None:
    """Its paths do not exist, so an HTTP server for buyers has none."""
    names = (*service_names(), HTTP_SERVER)
    with serve_platform(database, Settings(), names) as platform:
        assert Person(platform.url).get("/console/sign-in").status_code == 404
