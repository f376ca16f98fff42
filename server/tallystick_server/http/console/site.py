"""The console: sign-in, sessions, and the way from a request to a page or an act."""

from __future__ import annotations

import hmac
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

from aiohttp import web
from google.rpc import code_pb2

from tallystick_core.errors import ApiError, ErrorReason
from tallystick_server.http.console.acts import Act, ActPage
from tallystick_server.http.console.calls import CallFailed, PageCalls, PublicCalls
from tallystick_server.http.console.forms import read_fields, read_selection
from tallystick_server.http.console.links import ROOT, SIGN_IN, SIGN_OUT, path_of, with_query
from tallystick_server.http.console.navigation import NAVIGATION, section_of
from tallystick_server.http.console.pages.statements import LIST_PATH, StatementUpload
from tallystick_server.http.console.rendering import console_environment
from tallystick_server.http.console.session import Session, Sessions
from tallystick_server.http.console.visit import (
    Answer,
    FailedAct,
    Form,
    FormHandler,
    Page,
    PageHandler,
    Redirect,
    Visit,
)
from tallystick_server.http.errors import HttpError, http_status_of
from tallystick_server.http.request import Request
from tallystick_server.http.routing import Handler, Route
from tallystick_server.http.transcoder import VISIBLE_TEXT, require_loopback
from tallystick_server.http.web_pages import page_headers, static_routes

_HEADERS = page_headers(
    "style-src 'self'; img-src 'self'; form-action 'self'",
    "same-origin",  # with no-referrer a browser would send the origin "null" along with a form
)
_PROBLEM_TITLES = {
    code_pb2.NOT_FOUND: "Not found",
    code_pb2.INVALID_ARGUMENT: "This request is invalid",
    code_pb2.PERMISSION_DENIED: "You may not see this",
}
_MAX_TOKEN_LENGTH = 1000  # so that the cookie fits into the 4 KiB that browsers keep
_MAX_FORM_BYTES = 64 * 1024


class _TokenProblem(Exception):
    """A token that cannot be used. The text is for the person."""


@dataclass(frozen=True, slots=True)
class ConsoleOptions:
    """`is_encrypted`: browsers reach the server by TLS. `authenticates`: callers have tokens."""

    is_encrypted: bool
    authenticates: bool


class Console:
    """The routes of the console. `pages`: by path below /console, with the variables of the path.
    Pages with acts are in `act_pages`; what forms about several items do is in `form_pages`.
    """

    def __init__(
        self,
        calls: PublicCalls,
        sessions: Sessions,
        options: ConsoleOptions,
        pages: Mapping[str, PageHandler],
        act_pages: Sequence[ActPage],
        form_pages: Mapping[str, FormHandler],
        upload: StatementUpload,
    ) -> None:
        self._calls = calls
        self._sessions = sessions
        self._options = options
        self._pages = pages
        self._act_pages = act_pages
        self._form_pages = form_pages
        self._upload = upload
        self._environment = console_environment()
        self._acts = [act for page in act_pages for act in page.acts]
        # a browser sends a __Host- cookie back to this host only, and only by TLS
        self._cookie = "__Host-tallystick" if options.is_encrypted else "tallystick-console"

    def routes(self) -> list[Route]:
        """All routes. Without authentication only a loopback host is answered, as by the API."""
        pages = [
            Route("GET", "/".join(filter(None, (ROOT, path))), self._page_handler(page))
            for path, page in self._pages.items()
        ]
        acts = [
            Route("POST", f"{ROOT}/{page.path}/{act.name}", self._act_handler(page, act))
            for page in self._act_pages
            for act in page.acts
        ]
        forms = [
            Route("POST", f"{ROOT}/{path}", self._form_handler(handler))
            for path, handler in self._form_pages.items()
        ]
        signing = [
            Route("GET", SIGN_IN, self._show_sign_in),
            Route("POST", SIGN_IN, self._sign_in),
            Route("POST", SIGN_OUT, self._sign_out),
            Route("POST", f"{LIST_PATH}/upload", self._receive_upload),
        ]
        guard = (lambda handler: handler) if self._options.authenticates else require_loopback
        routes = [
            replace(route, handler=self._with_error_page(guard(route.handler)))
            for route in (*pages, *acts, *forms, *signing)
        ]
        return [*routes, *static_routes(Path(__file__).parent / "static", f"{ROOT}/static")]

    def _with_error_page(self, handler: Handler) -> Handler:
        """A handler that shows a person why the server rejects a request."""

        async def respond(request: Request) -> web.StreamResponse:
            try:
                return await handler(request)
            except HttpError as error:
                status = error.status or http_status_of(error.error.reason)
                values = {"error": {"text": error.error.message, "reason": ""}}
                response = self._render(Page("problem.html", "Rejected", values, status), None)
                response.headers.update(error.headers)
                return response

        return respond

    def _page_handler(self, page: PageHandler) -> Handler:
        async def respond(request: Request) -> web.StreamResponse:
            session = self._session_of(request)
            if session is None:
                return _redirect(with_query(SIGN_IN, next=request.http.rel_url.raw_path_qs))
            visit = self._visit(request, session)
            return await self._answer(visit, page)

        return respond

    def _act_handler(self, act_page: ActPage, act: Act) -> Handler:
        async def respond(request: Request) -> web.StreamResponse:
            session = self._session_of(request)
            if session is None:
                return _redirect(with_query(SIGN_IN, ended="1"))
            form = read_fields(await self.read_form(request))
            self.check_form(request, session, form)
            visit = self._visit(request, session)
            action = visit.path
            path = _fill_path(act_page.page_path or act_page.path, request.variables)
            fields = {item.name: form.get(item.name, "").strip() for item in act.inputs}
            hidden = {name: form.get(name, "") for name in act.hidden}
            fields_by_name = self._calls.method(act.call).input_type.fields_by_name
            named = {
                name: text for name, text in request.variables.items() if name in fields_by_name
            }
            try:
                await visit.calls.call(act.call, **named, **fields, **hidden)
            except CallFailed as error:
                if error.rejects_token:
                    return self._leave(session)
                failed = FailedAct(action, error, fields)
                visit = replace(visit, path=path, query={}, failed_act=failed)
                return await self._answer(visit, act_page.page, error.http_status)
            return _redirect(with_query(path, done=_done_mark(session, path, act)))

        return respond

    def _form_handler(self, handler: FormHandler) -> Handler:
        async def respond(request: Request) -> web.StreamResponse:
            session = self._session_of(request)
            if session is None:
                return _redirect(with_query(SIGN_IN, ended="1"))
            text = await self.read_form(request)
            form = Form(read_fields(text), read_selection(text))
            self.check_form(request, session, form.fields)
            return await self._answer(
                self._visit(request, session), lambda visit: handler(visit, form)
            )

        return respond

    async def _receive_upload(self, request: Request) -> web.StreamResponse:
        session = self._session_of(request)
        if session is None:
            return _redirect(with_query(SIGN_IN, ended="1"))
        self._require_same_origin(request)
        visit = replace(self._visit(request, session), path=LIST_PATH)
        return await self._answer(
            visit, lambda visit: self._upload.preview(visit, partial(self.check_csrf, session))
        )

    async def read_form(self, request: Request) -> str:
        """The body of a form. Raises HttpError."""
        body = await request.read_body(_MAX_FORM_BYTES)
        try:
            return body.decode("ascii")
        except UnicodeDecodeError:
            raise HttpError(
                ApiError(ErrorReason.MESSAGE_MALFORMED, "The form must be URL-encoded.")
            ) from None

    def check_form(self, request: Request, session: Session, form: Mapping[str, str]) -> None:
        """Raises HttpError unless a page of this console sent the form in this session."""
        self._require_same_origin(request)
        self.check_csrf(session, form)

    def check_csrf(self, session: Session, form: Mapping[str, str]) -> None:
        """Raises HttpError unless the form was made for this session."""
        if not hmac.compare_digest(
            form.get("csrf_token", "").encode(), session.csrf_token.encode()
        ):
            raise _forbidden("The form belongs to another session. Reload the page and try again.")

    def _require_same_origin(self, request: Request) -> None:
        """Raises HttpError for a form of another site."""
        headers = request.http.headers
        site = headers.get("Sec-Fetch-Site")
        if site is not None:
            is_own = site == "same-origin"
        else:
            scheme = "https" if self._options.is_encrypted else "http"
            origin = headers.get("Origin")
            is_own = origin is None or origin == f"{scheme}://{headers.get('Host', '')}"
        if not is_own:
            raise _forbidden("Only a page of this console may send this form.")

    def _session_of(self, request: Request) -> Session | None:
        return self._sessions.read(request.http.cookies.get(self._cookie, ""))

    def _visit(self, request: Request, session: Session) -> Visit:
        return Visit(
            request=request,
            session=session,
            calls=PageCalls(self._calls, session.token),
            path=request.http.rel_url.raw_path,
            time=self._sessions.now(),
            variables=request.variables,
            query=read_fields(request.http.rel_url.raw_query_string),
        )

    async def _answer(
        self, visit: Visit, page: PageHandler, status: int = 200
    ) -> web.StreamResponse:
        """`status`: of a page that succeeds."""
        try:
            answer: Answer = await page(visit)
        except CallFailed as error:
            if error.rejects_token:
                return self._leave(visit.session)
            answer = Page(
                "problem.html",
                _PROBLEM_TITLES.get(error.code, "This page is not available"),
                {"error": error},
                error.http_status,
            )
        if isinstance(answer, Redirect):
            return _redirect(answer.path)
        if answer.status == 200:
            answer = replace(answer, status=status)
        return self._render(answer, answer.visit or visit)

    def _render(self, page: Page, visit: Visit | None) -> web.Response:
        query = visit.query if visit else {}
        values = {
            "search_text": query.get("q", ""),
            **page.values,
            "title": page.title,
            "visit": visit,
            "session": visit.session if visit else None,
            "failed_act": visit.failed_act if visit else None,
            "done": self._done_text(visit) if visit else "",
            "navigation": NAVIGATION,
            "section": section_of(visit.path) if visit else "",
        }
        return web.Response(
            text=self._environment.get_template(page.template).render(values),
            status=page.status,
            content_type="text/html",
            headers=_HEADERS,
        )

    def _done_text(self, visit: Visit) -> str:
        """What was done just now on a page; "": nothing. A link of others cannot claim it."""
        mark = visit.query.get("done", "")
        texts = {_done_mark(visit.session, visit.path, act): act.done for act in self._acts}
        return texts.get(mark, "")

    async def _show_sign_in(self, request: Request) -> web.StreamResponse:
        query = read_fields(request.http.rel_url.raw_query_string)
        text = ""
        if "ended" in query:
            text = "Your session has ended, or its token is no longer valid. Nothing was changed."
        return self._sign_in_page(_own_path(query.get("next", "")), text)

    async def _sign_in(self, request: Request) -> web.StreamResponse:
        self._require_same_origin(request)
        form = read_fields(await self.read_form(request))
        token = form.get("token", "").strip()
        next_path = _own_path(form.get("next", ""))
        try:
            caller, roles = await self._identify(token)
        except _TokenProblem as problem:
            return self._sign_in_page(next_path, str(problem), status=401)
        response = _redirect(next_path)
        response.set_cookie(
            self._cookie,
            self._sessions.begin(token, caller, roles),
            max_age=self._sessions.lifetime_seconds,
            path="/",
            secure=self._options.is_encrypted,
            httponly=True,
            samesite="Strict",
        )
        return response

    async def _identify(self, token: str) -> tuple[str, Sequence[str]]:
        """The caller of a token and its roles, empty while the service does not answer: each page
        checks the token. A caller of every role may use the console: each page shows what the role
        may see. Raises _TokenProblem.
        """
        if not self._options.authenticates:
            token = ""
        elif len(token) > _MAX_TOKEN_LENGTH or VISIBLE_TEXT.fullmatch(token) is None:
            raise _TokenProblem("The token must be one of the platform's setting callers.")
        try:
            caller = await PageCalls(self._calls, token).call("payment.GetCaller")
        except CallFailed as error:
            if error.rejects_token:
                raise _TokenProblem(
                    "This token is unknown. It must be one of the platform's setting callers."
                ) from None
            return "", ()
        return caller["name"], caller["roles"]

    def _sign_in_page(self, next_path: str, problem: str, status: int = 200) -> web.Response:
        values = {
            "next": next_path,
            "problem": problem,
            "authenticates": self._options.authenticates,
        }
        return self._render(Page("sign_in.html", "Sign in", values, status), None)

    async def _sign_out(self, request: Request) -> web.StreamResponse:
        self._require_same_origin(request)
        session = self._session_of(request)
        if session is not None:
            self.check_form(request, session, read_fields(await self.read_form(request)))
            self._sessions.end(session)
        return self._without_cookie(_redirect(SIGN_IN))

    def _leave(self, session: Session) -> web.Response:
        """Ends a session whose token the platform rejects."""
        self._sessions.end(session)
        return self._without_cookie(_redirect(with_query(SIGN_IN, ended="1")))

    def _without_cookie(self, response: web.Response) -> web.Response:
        response.del_cookie(
            self._cookie,
            path="/",
            secure=self._options.is_encrypted,
            httponly=True,
            samesite="Strict",
        )
        return response


def _fill_path(path: str, variables: Mapping[str, str]) -> str:
    """The path of a page whose variables have these values."""
    return path_of(
        *(variables[part[1:-1]] if part.startswith("{") else part for part in path.split("/"))
    )


def _done_mark(session: Session, path: str, act: Act) -> str:
    """What proves to a page that this session did an act on it."""
    text = f"{act.call} {path}".encode()
    return hmac.digest(session.csrf_token.encode(), text, "sha256").hex()[:32]


def _redirect(path: str) -> web.Response:
    """A response that has the browser get another page of the console."""
    return web.Response(status=303, headers={**_HEADERS, "Location": path})


def _own_path(path: str) -> str:
    """A path of the console, and its start for anything else: nobody is led to another site."""
    is_own = path == ROOT or path.startswith((f"{ROOT}/", f"{ROOT}?"))
    is_plain = all("!" <= character <= "~" for character in path) and "\\" not in path
    return path if is_own and is_plain and not path.startswith(SIGN_IN) else ROOT


def _forbidden(text: str) -> HttpError:
    return HttpError(ApiError(ErrorReason.PERMISSION_DENIED, text))
