"""Who may ask the studio's pages for what: tried by requests, as another program would make them."""

import json
import re
import tempfile
from pathlib import Path
from urllib.parse import quote

import pytest
from studios import put, served, studio

from latentvid.errors import UserError
from latentvid.studio.__main__ import options, read_password
from latentvid.studio.guard import MOST_BODY
from latentvid.studio.limits import Limits
from latentvid.studio.server import check_listening, studio_of

HOSTILE = "<img src=x onerror=alert(1)>"


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.168.1.4", "example.org"])
def test_others_are_let_in_with_a_password_alone(host):
    with pytest.raises(UserError, match=f"--listen {host}: others can reach that: give --password-file"):
        check_listening(host, None)
    with pytest.raises(UserError, match="the password has 5 characters: give at least 8"):
        check_listening(host, "12345")
    check_listening(host, "12345678")


def test_this_machine_needs_none(tmp_path):
    for host in ("127.0.0.1", "::1", "localhost"):
        check_listening(host, None)
    (tmp_path / "p").write_text("secret words\nmore\n")
    assert read_password(tmp_path / "p") == "secret words"
    (tmp_path / "p").write_text("\n")
    with pytest.raises(UserError, match="its first line is empty"):
        read_password(tmp_path / "p")
    with pytest.raises(UserError, match="no cannot be read"):
        read_password(tmp_path / "no")


def test_what_is_not_there_is_said_before_it_listens(tmp_path):
    def of(*words):
        return studio_of(options().parse_args([*words, "--gallery", str(tmp_path / "g"), "--runs", str(tmp_path)]))

    with pytest.raises(UserError, match="--lora no.safetensors: there is no such file"):
        of("m", "--lora", "no.safetensors")
    with pytest.raises(UserError, match="name a pipeline's folder, or a hub name"):
        of()
    assert of("m").lists()["model"] == ["m"]


@pytest.fixture(scope="module")
def pages(tmp_path_factory):
    """(address, studio): with an item whose prompt and model are hostile; uploads of 1 MB, two files at a time."""
    pytest.importorskip("gradio")
    import torch

    folder = tmp_path_factory.mktemp("studio")
    (folder / "secret.txt").write_text("secret")
    own = studio(folder, HOSTILE)
    put(own.gallery, torch.zeros(2, 16, 16, 3, dtype=torch.uint8), prompt=HOSTILE)
    with served(own, limits=Limits(megabytes=1, files=2)) as address:
        yield address, own


def get(address: str, path: str, **words):
    import httpx

    with httpx.Client(timeout=30, trust_env=False) as client:
        return client.get(f"{address}/{path}", **words)


def post(address: str, path: str, **words):
    import httpx

    with httpx.Client(timeout=30, trust_env=False) as client:
        return client.post(f"{address}/{path}", **words)


def test_the_page_loads_from_its_own_host_alone(pages):
    answer = get(pages[0], "")
    assert answer.status_code == 200
    policy = answer.headers["content-security-policy"]
    assert "default-src 'self'" in policy and "http" not in policy and "*" not in policy
    assert not re.search(r"<(?:script|link|img|iframe)[^>]*\b(?:src|href)=[\"']?(?:https?:)?//", answer.text)
    assert HOSTILE not in answer.text  # in the page's settings, where "<" is written otherwise
    config = get(pages[0], "config").json()
    assert config["analytics_enabled"] is False
    assert get(pages[0], "gradio_api/info").json()["named_endpoints"] == {}


def test_no_file_outside_of_the_gallery_is_read(pages):
    address, own = pages
    item = own.gallery.items()[0]
    file = own.gallery.file(item)
    assert get(address, f"gradio_api/file={file}").content == file.read_bytes()
    secret = own.gallery.folder.parent / "secret.txt"
    here = own.gallery.folder
    ways = ["/etc/passwd", str(secret), f"{here}/../secret.txt", f"{here}/%2e%2e/secret.txt",
            "../../../../../etc/passwd", "file:///etc/passwd", "/proc/self/environ", "~/.bashrc", "\\etc\\passwd",
            f"{here}/..%2fsecret.txt", "http://127.0.0.1:1/"]  # fmt: skip
    for way in ways:
        for start in ("gradio_api/file=", "gradio_api/file/", "file=", "file/", "gradio_api/proxy=", "static/",
                      "assets/", "gradio_api/custom_component/1/client/component/", "svelte/"):  # fmt: skip
            answer = get(address, f"{start}{way}")
            assert answer.status_code >= 400, (start, way)
            assert b"root:" not in answer.content and answer.content != b"secret"


def test_of_the_gallerys_folder_clips_alone_are_shown(pages):
    """Not what else lies there, as where it is a folder of other work, nor where a link leads."""
    address, own = pages
    folder, item = own.gallery.folder, own.gallery.items()[0]
    (folder / "notes.txt").write_text("secret")
    (folder / "20200101-000000-000000.mp4").symlink_to(folder.parent / "secret.txt")
    (folder / "x").symlink_to(folder.parent)
    for name in ("notes.txt", "20200101-000000-000000.mp4", "x/secret.txt", f"{item.name[:-4]}.json", "", "\0"):
        for start in ("gradio_api/file=", "gradio_api/file/", "file=", "gradio_api//file="):
            answer = get(address, f"{start}{folder}/{name}".replace("\0", "%00"))
            assert answer.status_code >= 400 and b"secret" not in answer.content, (start, name)
    assert get(address, f"gradio_api/file={folder}/{item.name}").status_code == 200


def test_a_component_takes_no_file_that_was_not_uploaded(pages):
    """Gradio's events take files as paths: those of others are refused, whatever the event."""
    address, own = pages
    secret = own.gallery.folder.parent / "secret.txt"
    config = get(address, "config").json()
    uploads = {c["id"] for c in config["components"] if c["type"] in ("file", "image")}
    events = [d for d in config["dependencies"] if uploads & set(d["inputs"])]
    assert events
    kinds = {c["id"]: c["type"] for c in config["components"]}
    for number, event in enumerate(events):
        one = {"path": str(secret), "meta": {"_type": "gradio.FileData"}}
        data = [one if kinds[i] in ("file", "image") else None for i in event["inputs"]]
        session = {"session_hash": f"s{number}", "fn_index": event["id"], "data": data}
        assert post(address, "gradio_api/queue/join", json=session).status_code == 200
        said = b""
        import httpx

        with (
            httpx.Client(timeout=30, trust_env=False) as client,
            client.stream("GET", f"{address}/gradio_api/queue/data", params={"session_hash": f"s{number}"}) as stream,
        ):
            for line in stream.iter_lines():
                said += line.encode()
                if "process_completed" in line or "close_stream" in line:
                    break
        assert b"process_completed" in said and json.dumps("secret").encode() not in said
        assert b'"success":false' in said.replace(b" ", b""), said[-400:]
    assert not (own.gallery.folder / "inputs").exists()


def test_uploads_are_bounded_in_size_and_number(pages):
    address, _ = pages
    assert post(address, "gradio_api/upload", files={"files": ("a.png", bytes(1_200_000))}).status_code == 413
    assert post(address, "gradio_api/queue/join", content=bytes(MOST_BODY + 1)).status_code == 413
    many = iter([b"x"])  # of unknown length
    assert post(address, "gradio_api/upload", content=many).status_code == 411
    found = [post(address, "gradio_api/upload", files={"files": (f"{i}.png", bytes([i]))}) for i in range(3)]
    assert [answer.status_code for answer in found] == [200, 200, 507]
    named = post(address, "gradio_api/upload", files={"files": ("../../x.png", b"x")})
    assert named.status_code == 507


SCRIPT = b"<svg xmlns='http://www.w3.org/2000/svg' onload='alert(1)'><script>alert(2)</script></svg>"
NAMES = ("../../x.png", "/etc/x.png", 'a"b\nc.png', "%2e%2e%2fx.png", "日本語 é.png", "$(touch x);.png", ".png",
         "<img src=x onerror=alert(1)>.png", "x" * 300 + ".png", "con\0.png", "picture.svg", "page.html")  # fmt: skip


def test_uploads_stay_in_their_folder_and_nothing_in_them_runs(tmp_path):
    """Whatever their names are and hold. As pages of their own they are downloads; as pictures they are refused."""
    pytest.importorskip("gradio")
    own = studio(tmp_path, "m")
    before = set(tmp_path.rglob("*"))
    with served(own) as address:
        for name in NAMES:
            answer = post(address, "gradio_api/upload", files={"files": (name, SCRIPT)})
            if answer.status_code != 200:
                assert 400 <= answer.status_code < 500, name
                continue
            (place,) = map(Path, answer.json())
            assert place.is_file() and place.resolve().is_relative_to(Path(tempfile.gettempdir()).resolve()), name
            assert place.parents[1].name.startswith("latentvid-studio-"), name
            shown = get(address, f"gradio_api/file={quote(str(place))}")
            policy = shown.headers["content-security-policy"]
            assert "sandbox" in policy and "script-src" not in policy and "default-src 'none'" in policy
            safe = shown.headers["content-type"].startswith("image/png")
            assert safe or "attachment" in shown.headers["content-disposition"], name
            assert shown.headers["x-content-type-options"] == "nosniff"
            with pytest.raises(UserError, match=r"give a video or a picture|cannot be") as said:
                own.gallery.keep(str(place))
            assert str(place.parent) not in str(said.value)
    assert set(tmp_path.rglob("*")) == before


def test_no_program_runs_on_an_upload(tmp_path, monkeypatch):
    """Pillow runs Ghostscript where a file holds an EPS: in the studio's process it does not look for it."""
    pytest.importorskip("gradio")
    from PIL import EpsImagePlugin, Image

    (tmp_path / "gs").write_text(f"#!/bin/sh\ntouch {tmp_path}/ran\n")
    (tmp_path / "gs").chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
    monkeypatch.setattr(EpsImagePlugin, "gs_binary", None)
    (tmp_path / "x.png").write_text("%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 8 8\n%%EndComments\nshowpage\n%%EOF\n")
    with served(studio(tmp_path, "m")), Image.open(tmp_path / "x.png") as picture:
        assert picture.format == "EPS"
        with pytest.raises(OSError, match="Ghostscript"):
            picture.convert("L")
    assert not (tmp_path / "ran").exists()


def test_another_hosts_page_cannot_ask(pages):
    """By a name that was made to lead here, or from its own origin."""
    address, _ = pages
    assert get(address, "", headers={"host": "evil.example"}).status_code == 421
    answer = get(address, "config", headers={"origin": "http://evil.example"})
    assert (
        "access-control-allow-origin" not in answer.headers
        or "evil" not in answer.headers["access-control-allow-origin"]
    )
    for closed in ("monitoring", "gradio_api/vibe-code", "gradio_api/dev/reload", "docs", "openapi.json"):
        assert get(address, closed).status_code == 404


def test_without_the_password_nothing_is_told(tmp_path):
    pytest.importorskip("gradio")
    import torch

    own = studio(tmp_path, "m")
    put(own.gallery, torch.zeros(2, 16, 16, 3, dtype=torch.uint8), prompt="hidden prompt")
    file = own.gallery.file(own.gallery.items()[0])
    with served(own, password="long enough") as address:
        page = get(address, "")
        assert "hidden" not in page.text and "make-t2v" not in page.text
        for path in ("config", "gradio_api/info", f"gradio_api/file={file}", "gradio_api/queue/data?session_hash=s"):
            assert get(address, path).status_code == 401, path
        assert post(address, "gradio_api/upload", files={"files": ("a.png", b"x")}).status_code == 401
        assert post(address, "gradio_api/queue/join", json={"fn_index": 0, "data": []}).status_code == 401
        wrong = post(address, "login", data={"username": "me", "password": "long enougH"})
        assert wrong.status_code == 400
        right = post(address, "login", data={"username": "me", "password": "long enough"})
        assert right.status_code == 200 and get(address, "config", cookies=right.cookies).status_code == 200
