"""Starting the studio: what it may show, where it listens, and who may come in."""

from __future__ import annotations

import argparse
import hmac
import importlib.util
import ipaddress
import os
import tempfile
from pathlib import Path
from typing import Any

from PIL import EpsImagePlugin

from ..errors import UserError
from ..pipelines import arguments
from .gallery import Gallery
from .guard import Guard
from .limits import Limits
from .page import STYLE, build, theme
from .studio import Studio

SHORTEST = 8  # characters of a password
QUEUE = 16  # generations that may wait


def is_loopback(host: str) -> bool:
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def check_listening(host: str, password: str | None) -> None:
    """Raises UserError where others could come in without a password."""
    if not is_loopback(host) and password is None:
        raise UserError(
            f"--listen {host}: others can reach that: give --password-file, or set LATENTVID_STUDIO_PASSWORD, and "
            "encrypt what passes with a proxy or ssh -L"
        )
    if password is not None and len(password) < SHORTEST:
        raise UserError(f"the password has {len(password)} characters: give at least {SHORTEST}")


def studio_of(args: argparse.Namespace) -> Studio:
    """Raises UserError for what is not there."""
    for option in ("lora", "control", "motion"):
        for path in getattr(args, option):
            if not Path(path).exists():
                raise UserError(f"--{option} {path}: there is no such file or folder")
    given = {"model": args.models, "lora": args.lora, "control": args.control, "motion": args.motion}
    limits = Limits(megabytes=args.max_megabytes, seconds=args.max_seconds)
    studio = Studio(Gallery(args.gallery, limits), given, args.runs)
    if not studio.lists()["model"]:
        demo = arguments.parser_of("").get_default("model")
        raise UserError(f"there is no model in {demo} nor below --runs: name a pipeline's folder, or a hub name")
    return studio


def launch(studio: Studio, host: str, port: int | None, password: str | None, limits: Limits) -> Any:
    """Listens, and gives Gradio's blocks. port: None takes the first free one from 7860 on. Raises UserError."""
    check_listening(host, password)
    if importlib.util.find_spec("gradio") is None:
        raise UserError('the studio needs Gradio: pip install "latentvid[studio]"')
    uploads = Path(tempfile.mkdtemp(prefix="latentvid-studio-"))
    # read by Gradio when it is imported, or as it starts: nothing is reported, shared, or kept elsewhere
    os.environ |= {"GRADIO_ANALYTICS_ENABLED": "False", "GRADIO_TEMP_DIR": str(uploads), "GRADIO_SHARE": "False"}
    import gradio
    from starlette.middleware import Middleware

    EpsImagePlugin.gs_binary = False  # Gradio opens uploads by Pillow, which runs Ghostscript on an EPS of any name
    gradio.set_static_paths([studio.gallery.folder])  # served as they lie there, without a copy
    page = build(studio)
    guard = Middleware(Guard, loopback=is_loopback(host), limits=limits, uploads=uploads, gallery=studio.gallery.folder)
    page.queue(max_size=QUEUE, default_concurrency_limit=4)
    try:
        page.launch(
            server_name=host,
            server_port=port,
            share=False,
            auth=None if password is None else lambda _, given: hmac.compare_digest(given.encode(), password.encode()),
            auth_message="Any name, and the password that the studio was started with.",
            allowed_paths=[str(studio.gallery.folder)],
            max_file_size=limits.megabytes * 1_000_000,
            app_kwargs={"middleware": [guard], "docs_url": None, "redoc_url": None, "openapi_url": None},
            theme=theme(),
            css=STYLE,
            footer_links=[],
            ssr_mode=False,
            mcp_server=False,
            enable_monitoring=False,
            run_history=False,
            show_error=False,
            quiet=True,
            prevent_thread_lock=True,
        )
    except OSError as error:
        raise UserError(f"--port {port}: {error}: give another one") from None
    return page


def run(args: argparse.Namespace, password: str | None) -> None:
    """The program, until Ctrl-C."""
    check_listening(args.listen, password)
    studio = studio_of(args)
    limits = Limits(megabytes=args.max_megabytes, seconds=args.max_seconds)
    page = launch(studio, args.listen, args.port, password, limits)
    print(f"the studio: {page.local_url} (Ctrl-C ends it); what is made is in {studio.gallery.folder}", flush=True)
    try:
        page.block_thread()
    finally:
        studio.worker.close()
