"""The page as an application: its two languages, and what keeps it to itself."""

from __future__ import annotations

import os
import socket
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any

os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"  # read when it is imported

import fastapi
import gradio as gr
import uvicorn
from starlette.middleware.trustedhost import TrustedHostMiddleware
from starlette.responses import RedirectResponse, Response

from sft.web.desk import Desk
from sft.web.tabs import ArenaTab, ChatTab
from sft.web.words import LANGUAGES, Language, preferred, say

_LOOPBACK = ("127.0.0.1", "localhost")
_FONTS = ["system-ui", "-apple-system", "Segoe UI", "PingFang SC", "Microsoft YaHei", "Noto Sans CJK SC", "sans-serif"]
_MONO = ["ui-monospace", "Consolas", "Noto Sans Mono CJK SC", "monospace"]
# Gradio's own scripts and styles are inline in part. Nothing is fetched from elsewhere: neither by it, nor by a picture in an answer.
_POLICY = (
    "default-src 'self'; script-src 'self' 'unsafe-inline' 'unsafe-eval'; style-src 'self' 'unsafe-inline'; img-src 'self' data: blob:; "
    "font-src 'self' data:; connect-src 'self'; worker-src 'self' blob:; object-src 'none'; frame-src 'none'; frame-ancestors 'none'; "
    "form-action 'self'; base-uri 'self'"
)
_HEADERS = {
    b"content-security-policy": _POLICY.encode(),
    b"referrer-policy": b"no-referrer",
    b"x-content-type-options": b"nosniff",
}
_CSS = """
.notice textarea { border-left: 4px solid var(--color-accent) !important; }
.notice textarea:disabled { -webkit-text-fill-color: var(--body-text-color); opacity: 1; }
.dialogue pre, .dialogue pre code { white-space: pre-wrap !important; overflow-wrap: anywhere; }
@media (max-width: 640px) {
  .gradio-container main.app, .gradio-container main.contain { padding: 8px !important; }
  .dialogue { height: 44vh !important; }
}
"""
Message = MutableMapping[str, Any]
Send = Callable[[Message], Awaitable[None]]


class _Headers:
    """Puts the headers above on every answer."""

    def __init__(self, app: Callable[..., Awaitable[None]]) -> None:
        self.app = app

    async def __call__(self, scope: Message, receive: Callable[[], Awaitable[Message]], send: Send) -> None:
        async def guarded(message: Message) -> None:
            if message["type"] == "http.response.start":
                kept = [one for one in message.get("headers", []) if one[0].lower() not in _HEADERS]
                message["headers"] = [*kept, *_HEADERS.items()]
            await send(message)

        await self.app(scope, receive, guarded)


def blocks(desk: Desk, language: Language) -> gr.Blocks:
    """The page in one language."""
    with gr.Blocks(title=say(language, "title"), analytics_enabled=False, fill_width=False) as page:
        gr.Markdown(f"### {say(language, 'title')}　{say(language, 'other')}")
        chat, arena = ChatTab(desk, language), ArenaTab(desk, language)
        # rendered at once: what is typed within the first moments of a box that comes late is lost
        with gr.Tab(say(language, "chat"), id="chat", render_children=True):
            chat.build()
        with gr.Tab(say(language, "arena"), id="arena", render_children=True):
            arena.build()

        async def left(request: gr.Request) -> None:
            gone = desk.page(request.session_hash)
            gone.chat.stop()
            gone.battle.talk.stop()

        page.load(chat.on_models, [chat.model], [chat.model, chat.notice], show_progress="hidden", api_visibility="private")
        page.unload(left)
    page.queue(default_concurrency_limit=None)
    return page


def application(desk: Desk, host: str, lang: Language | None) -> fastapi.FastAPI:
    """The whole application.

    Args:
        desk: servers, files and pages.
        host: that it listens on. On loopback only requests for loopback are taken: a page elsewhere cannot reach it by a name of its own.
        lang: what ``/`` leads to; None follows the browser.
    """
    app = fastapi.FastAPI(docs_url=None, redoc_url=None, openapi_url=None)

    async def start(request: fastapi.Request) -> RedirectResponse:
        return RedirectResponse(f"{lang or preferred(request.headers.get('accept-language', ''))}/")

    async def icon() -> Response:
        return Response(status_code=204)

    app.add_api_route("/", start, response_model=None)
    app.add_api_route("/favicon.ico", icon, response_model=None)

    theme = gr.themes.Default(font=_FONTS, font_mono=_MONO)
    for language in LANGUAGES:
        gr.mount_gradio_app(
            app,
            blocks(desk, language),
            path=f"/{language}",
            theme=theme,
            css=_CSS,
            head=f"<script>document.documentElement.lang = '{say(language, 'html_lang')}'</script>",
            footer_links=[],
            run_history=False,
            ssr_mode=False,
            enable_monitoring=False,
            mcp_server=False,
            pwa=False,
            max_file_size=1,
            show_error=True,
        )
    if host in _LOOPBACK:
        app.add_middleware(TrustedHostMiddleware, allowed_hosts=list(_LOOPBACK))
    app.add_middleware(_Headers)
    return app


def serve(desk: Desk, listening: socket.socket, host: str, lang: Language | None) -> None:
    """Serve the page until it is stopped."""
    config = uvicorn.Config(
        application(desk, host, lang), log_level="warning", timeout_graceful_shutdown=1, lifespan="on", server_header=False
    )
    uvicorn.Server(config).run(sockets=[listening])
