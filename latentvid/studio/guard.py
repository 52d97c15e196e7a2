"""What lies between the network and Gradio: which hosts are answered, how much may come in, which files are shown, and
what pages may load."""

from __future__ import annotations

import os
from collections.abc import Awaitable, Callable, MutableMapping
from pathlib import Path
from typing import Any

from .gallery import NAME
from .limits import Limits

Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]
LOOPBACK = ("127.0.0.1", "localhost", "::1")
# nothing is loaded from, or sent to, another host; a picture or a clip may be data of the page
POLICY = (
    "default-src 'self'; script-src 'self' 'unsafe-inline' 'unsafe-eval' blob:; style-src 'self' 'unsafe-inline'; "
    "img-src 'self' data: blob:; media-src 'self' data: blob:; font-src 'self' data:; connect-src 'self' blob: data:; "
    "worker-src 'self' blob:; frame-src 'self' data: blob:; object-src 'none'; base-uri 'self'; form-action 'self'; "
    "frame-ancestors 'self'"
)
# of a file that is opened as a page of its own (an SVG, HTML): nothing in it runs, and it is of no origin
FILE_POLICY = "default-src 'none'; img-src 'self'; media-src 'self'; style-src 'unsafe-inline'; sandbox"
HEADERS = {
    b"content-security-policy": POLICY.encode(),
    b"x-content-type-options": b"nosniff",
    b"referrer-policy": b"no-referrer",
}
CLOSED = (
    "proxy=",
    "file=http",
    "vibe",
    "undo-vibe",
    "dev/",
    "monitoring",
    "run-history",
    "stream/",
    "process_recording",
)
FILES = ("file=", "file/")
MOST_BODY = 4_000_000  # bytes of a request that uploads nothing
ROOM = 100_000  # bytes of an upload's form beside its files


class Guard:
    """ASGI middleware.

    loopback: whether the studio listens on this machine alone, and answers no other name: a page of another host whose
    name was made to lead here cannot ask it. uploads: the folder of uploaded files. gallery: of what was made, whose
    clips are shown and nothing else that lies there.
    """

    def __init__(self, app: Any, *, loopback: bool, limits: Limits, uploads: Path, gallery: Path) -> None:
        self.app, self.loopback, self.limits = app, loopback, limits
        self.uploads, self.gallery = Path(os.path.realpath(uploads)), Path(os.path.realpath(gallery))

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        refused = self._refused(scope)
        if refused is not None:
            status, text = refused
            kind = [(b"content-type", b"text/plain; charset=utf-8"), (b"connection", b"close")]
            await send({"type": "http.response.start", "status": status, "headers": kind})
            await send({"type": "http.response.body", "body": text.encode()})
            return

        own = HEADERS | ({b"content-security-policy": FILE_POLICY.encode()} if _asked(scope).startswith(FILES) else {})

        async def send_with_headers(message: MutableMapping[str, Any]) -> None:
            if message["type"] == "http.response.start":
                kept = [(name, value) for name, value in message.get("headers", ()) if name.lower() not in own]
                message = {**message, "headers": [*kept, *own.items()]}
            await send(message)

        await self.app(scope, receive, send_with_headers)

    def _refused(self, scope: Scope) -> tuple[int, str] | None:
        headers = dict(scope["headers"])
        if self.loopback and _host(headers.get(b"host", b"").decode("latin-1")) not in LOOPBACK:
            return 421, "this studio answers to its own machine's name alone"
        path = _asked(scope)
        if path.startswith(CLOSED):
            return 404, "not found"
        if path.startswith(FILES) and not self._shown(path[len(FILES[0]) :]):
            return 404, "not found"
        if scope["method"] in ("GET", "HEAD", "OPTIONS"):
            return None
        length = headers.get(b"content-length", b"")
        if not length.isdigit():
            return 411, "say how long it is"
        if not path.startswith("upload"):
            return (413, "too long") if int(length) > MOST_BODY else None
        if int(length) > self.limits.megabytes * 1_000_000 + ROOM:
            return 413, f"an upload has at most {self.limits.megabytes} MB"
        files, size = _held(self.uploads)
        if files >= self.limits.files or size + int(length) > self.limits.gigabytes * 1e9:
            return 507, "there is no room for more uploads: they are removed after an hour, or when the studio ends"
        return None

    def _shown(self, path: str) -> bool:
        """Whether a file is one of the gallery's clips or an upload, wherever links lead."""
        try:
            place = Path(os.path.realpath(path))
        except (OSError, ValueError):  # a name that no file can have
            return False
        return place.is_relative_to(self.uploads) or (place.parent == self.gallery and bool(NAME.fullmatch(place.name)))


def _asked(scope: Scope) -> str:
    """The path that is asked for, without what Gradio's begin with."""
    return scope["path"].removeprefix("/gradio_api").lstrip("/")


def _host(text: str) -> str:
    """A Host header without its port."""
    return text[1:].partition("]")[0] if text.startswith("[") else text.partition(":")[0]


def _held(folder: Path) -> tuple[int, int]:
    """Files below a folder, and their bytes."""
    sizes = []
    for place, _, names in os.walk(folder):
        for name in names:
            try:
                sizes.append(os.lstat(os.path.join(place, name)).st_size)
            except OSError:  # removed meanwhile
                continue
    return len(sizes), sum(sizes)
