"""Clips behind URLs: read by ranges, kept in a bounded cache, and no fault of the storage is a clip's."""

import json
import logging
import threading
from pathlib import Path

import av
import pytest
import torch
from far_storage import Far, far_storage

from latentvid.command_line import Parser
from latentvid.config.parsing import load_config, to_dict
from latentvid.config.schema import VaeConfig
from latentvid.data.access import files, remote
from latentvid.data.access.faults import translated
from latentvid.data.access.store import Store
from latentvid.data.clips import ClipSource, Transform
from latentvid.data.manifest.manifest import ManifestError, read_manifest, write_manifest
from latentvid.data.quarantine import Quarantine
from latentvid.data.video.opening import opened_for_times, opened_video
from latentvid.data.video.packets import Packets
from latentvid.data.video.reading import probe, read_frames
from latentvid.data.video.writing import write_video
from latentvid.errors import ClipError, StorageError, UserError
from latentvid.places import absolute, is_url, join, parent, place, redacted, shown

SECRET = "https://user:hunter2secret@host/a.mp4?X-Amz-Signature=5ec8e7"


@pytest.fixture
def far(monkeypatch, tmp_path):
    yield from far_storage(monkeypatch, tmp_path / "cache")


@pytest.fixture
def clips(far: Far, tmp_path) -> ClipSource:
    """Three clips of one size behind URLs, with a quarantine in a file."""
    folder = tmp_path / "clips"
    for n, name in enumerate("abc"):
        write_video(folder / f"{name}.mp4", torch.full((5, 32, 32, 3), 60 * n + 40, dtype=torch.uint8), 8.0)
    rows = [{"path": f"{name}.mp4", "caption": name} for name in "abc"]
    (folder / "train.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    far.put_folder(folder)
    clips = ClipSource(read_manifest("memory://bucket/train.jsonl"), Transform(spatial_stride=8, temporal_stride=4))
    clips.quarantine = Quarantine(tmp_path / "quarantine.jsonl")
    return clips


def forget(tmp_path: Path) -> None:
    """What was fetched before is not there any more."""
    for file in (tmp_path / "cache").rglob("*"):
        if file.is_file():
            file.unlink()
    remote._statuses.clear()


def test_places_are_urls_or_paths_of_this_machine():
    assert [is_url(p) for p in ("s3://b/k", Path("s3://b/k"), "hf:/datasets/a/b", SECRET)] == [True] * 4
    assert [is_url(p) for p in ("/a/b", "concat:a", "C:/a", "file:///a", "a:b/c", "")] == [False] * 6
    assert place(Path("S3://b/k")) == place("S3://b/k") == "s3://b/k" and place("file:///a/b") == "/a/b"
    assert absolute("gs://b/../k") == "gs://b/../k" and parent("s3://b/d/m.jsonl") == "s3://b/d"
    assert join("s3://b/d", "../x.mp4") == "s3://b/x.mp4" and join("s3://b/d", "/local.mp4") == "/local.mp4"
    assert join("/folder", "s3://b/x.mp4") == "s3://b/x.mp4" and join("/folder", "x.mp4") == "/folder/x.mp4"


def test_what_is_shown_of_a_url_has_no_credentials(monkeypatch, tmp_path, caplog):
    assert shown(SECRET).startswith("https://host/a.mp4?") and shown(SECRET) != shown(SECRET + "7")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "wJalrXUtnFEMI")
    said = [
        redacted(f"GET {SECRET} failed; Authorization: Bearer abc.def, token=xyz123, {{'secret': 'q1w2e3'}}"),
        redacted("it is wJalrXUtnFEMI"),
        str(ClipError(SECRET, "missing", "is gone")),
        str(StorageError(SECRET, "reset")),
    ]
    quarantine = Quarantine(tmp_path / "q.jsonl")
    quarantine.add(ClipError(SECRET, "missing", "is gone"))
    with pytest.raises(ClipError) as again:
        quarantine.check(SECRET)
    with pytest.raises(ManifestError) as kept:
        write_manifest(tmp_path / "m.jsonl", [{"path": SECRET, "caption": "a"}])
    with pytest.raises(UserError) as config:
        load_config(VaeConfig, None, [f"run.dir={tmp_path}", f"data.manifest={SECRET}"])
    said += [(tmp_path / "q.jsonl").read_text(), str(again.value), str(kept.value), str(config.value), caplog.text]
    for text in said:
        assert not any(word in text for word in ("hunter2", "5ec8e7", "abc.def", "xyz123", "q1w2e3", "wJalr")), text


def test_configurations_keep_urls_whole_and_refuse_them_elsewhere(tmp_path, capsys):
    config = load_config(VaeConfig, None, [f"run.dir={tmp_path}", "data.manifest=[s3://b/x.jsonl,/y.jsonl]"])
    assert to_dict(config)["data"]["manifest"] == ["s3://b/x.jsonl", "/y.jsonl"]
    parser = Parser()
    parser.add_argument("--out", type=Path), parser.add_argument("--manifest", type=Path)
    assert parser.parse_args(["--manifest", "s3://b/x.jsonl"]).manifest == Path("s3:/b/x.jsonl")
    with pytest.raises(SystemExit):
        parser.parse_args(["--out", "s3://b/x"])
    assert "--out=s3://b/x cannot be a URL" in capsys.readouterr().err
    with pytest.raises(UserError, match=r"run\.dir=s3://b/run cannot be a URL.*latentvid copy"):
        load_config(VaeConfig, None, ["run.dir=s3://b/run", "data.manifest=a.jsonl"])


def test_a_window_of_a_long_video_fetches_what_it_needs(far, tmp_path):
    frames = torch.randint(256, (260, 96, 128, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    write_video(tmp_path / "long.mp4", frames, 25.0)
    url, size = far.put(tmp_path / "long.mp4", "long.mp4"), (tmp_path / "long.mp4").stat().st_size
    found = read_frames(url, 252, 5)
    assert torch.equal(found, read_frames(tmp_path / "long.mp4", 252, 5))
    assert size > 2_000_000 and far.fetched < 0.4 * size
    before = far.requests
    assert torch.equal(read_frames(url, 252, 5), found) and far.requests == before  # of the cache
    assert probe(url) == probe(tmp_path / "long.mp4")


@pytest.mark.parametrize("codec", ["libx264", "libx265", "mpeg4", "libvpx-vp9"])
def test_times_are_told_without_the_pictures(codec, far, tmp_path):
    with av.open(str(tmp_path / "a.mp4"), "w") as container:
        stream = container.add_stream(codec, 12, {"g": "10", "bf": "2"} if codec != "libvpx-vp9" else {})
        stream.width, stream.height, stream.pix_fmt = 64, 64, "yuv420p"
        for _ in range(40):
            picture = av.VideoFrame.from_ndarray(torch.randint(256, (64, 64, 3), dtype=torch.uint8).numpy(), "rgb24")
            picture.pts = None
            container.mux(stream.encode(picture))
        container.mux(stream.encode(None))
    url = far.put(tmp_path / "a.mp4", "a.mp4")
    told = []
    with opened_video(url) as video, opened_for_times(url, video) as (alone, keys):
        assert alone is not video and keys
        for source, keys_at in ((video, None), (alone, keys)):
            packets = Packets(url, source, keys_at)
            for packet in source.packets():
                packets.add(packet)
            told.append(packets.frame_times())
    for name in ("shown", "keys", "last"):
        assert torch.equal(*(torch.as_tensor(getattr(times, name)) for times in told))


class Answer(Exception):
    """As aiohttp has it."""

    def __init__(self, status: int) -> None:
        super().__init__(f"{status}, url='{SECRET}'")
        self.status = status


class Refusal(Exception):
    """As botocore has it."""

    def __init__(self, code: str, status: int) -> None:
        super().__init__(f"An error occurred ({code}); secret=hunter2")
        self.response = {"Error": {"Code": code}, "ResponseMetadata": {"HTTPStatusCode": status}}


PASSING = [Answer(503), Answer(429), Refusal("SlowDown", 503), ConnectionResetError(104, "reset"), TimeoutError()]


@pytest.mark.parametrize("error", PASSING, ids=repr)
def test_a_fault_of_the_storage_is_waited_for_and_no_clip_is_replaced(error, far, clips, tmp_path):
    whole = clips.load(1, 0, 0)
    forget(tmp_path)
    left = [13]  # more than the tries of one request

    def fault(path: str) -> Exception | None:
        left[0] -= 1
        return error if left[0] >= 0 and path.endswith("b.mp4") else None

    far.fault = fault
    found = clips.load(1, 0, 0)
    assert left[0] < 0 and not found.replaced and torch.equal(found.pixels, whole.pixels)
    assert not clips.quarantine.file.exists()


def test_a_fault_in_the_middle_of_a_file_is_none_of_its_content(far, tmp_path):
    """FFmpeg takes a read that fails for the file's end."""
    frames = torch.randint(256, (130, 96, 128, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    write_video(tmp_path / "a.mp4", frames, 25.0)
    url, left = far.put(tmp_path / "a.mp4", "a.mp4"), [2]  # the head, and what says its size

    def fault(path: str) -> Exception | None:
        left[0] -= 1
        return Answer(503) if left[0] < 0 else None

    far.fault = fault
    with pytest.raises(StorageError, match=r"a\.mp4: its storage does not answer"):
        read_frames(url)


def test_a_storage_that_is_gone_stops_the_run_and_sets_nothing_aside(far, clips, tmp_path):
    forget(tmp_path)
    far.fault = lambda path: Answer(500)
    clips.patience_s = 1.0
    with pytest.raises(StorageError, match=r"b\.mp4: its storage does not answer \(500\), for \d+ s: bring"):
        clips.load(1, 0, 0)
    far.fault = lambda path: Refusal("InvalidAccessKeyId", 403)
    with pytest.raises(StorageError, match=r"memory://bucket refuses this user .*InvalidAccessKeyId.*start again"):
        clips.load(1, 0, 0)
    assert not clips.quarantine.file.exists()


def test_an_object_that_is_not_there_is_a_missing_clip(far, clips, tmp_path, caplog):
    far.fs.rm_file("/bucket/b.mp4")
    forget(tmp_path)
    with caplog.at_level(logging.WARNING):
        found = clips.load(1, 0, 0)
    assert (found.index, found.replaced) == (2, True)
    assert clips.quarantine.reasons == {"memory://bucket/b.mp4": "missing"}
    manifest = read_manifest("memory://bucket/train.jsonl")
    assert [*manifest.dropped] == [("memory://bucket/b.mp4", "missing")]


@pytest.mark.parametrize(
    ("error", "there", "expected"),
    [
        (Refusal("NoSuchBucket", 404), True, "s3://bucket is not there"),
        (FileNotFoundError("x"), False, "s3://bucket is not there"),
        (Refusal("AccessDenied", 403), True, "s3://bucket refuses this user .*AWS_ACCESS_KEY_ID"),
        (PermissionError("Access Denied"), True, "s3://bucket refuses this user"),
        (type("NoCredentialsError", (Exception,), {})("Unable to locate"), True, "refuses this user"),
        (Refusal("PermanentRedirect", 301), True, "PermanentRedirect"),
    ],
    ids=repr,
)
def test_a_bucket_that_no_waiting_brings_back_has_a_fix(error, there, expected):
    fault = translated("s3://bucket/a.mp4", error, lambda: there)
    assert isinstance(fault, StorageError) and fault.fix and "hunter2" not in str(fault)
    assert __import__("re").search(expected, str(fault)), fault


def test_an_absence_is_none_of_the_bucket():
    for error in (FileNotFoundError("x"), Refusal("NoSuchKey", 404), Answer(404)):
        assert isinstance(translated("s3://bucket/a.mp4", error, lambda: True), FileNotFoundError)


def test_a_scheme_without_a_driver_says_what_to_install():
    with pytest.raises(UserError, match="nonsense:// is no storage"):
        files.status("nonsense://a/b")


def test_the_cache_on_disk_keeps_its_bound_among_threads_and_processes(tmp_path):
    stores = [Store(tmp_path, 1_000_000), Store(tmp_path, 1_000_000)]

    def fill(n: int) -> None:
        for i in range(60):
            stores[n].put(f"{n}{i:031x}", bytes([n]) * 30_000)
            assert stores[1 - n].used() < 1_100_000

    threads = [threading.Thread(target=fill, args=(n,)) for n in range(2)]
    [thread.start() for thread in threads]
    [thread.join() for thread in threads]
    assert 500_000 < stores[0].used() <= 1_000_000
    stores[0].put("f" * 32, b"last")
    assert stores[0].get("f" * 32) == stores[1].get("f" * 32) == b"last"


def test_a_damaged_piece_is_not_believed(tmp_path):
    store = Store(tmp_path, 10**6)
    store.put("a" * 32, b"something")
    (piece,) = (tmp_path / "aa").iterdir()
    piece.write_bytes(b"s0" + piece.read_bytes()[2:])
    assert store.get("a" * 32) is None


def test_a_cache_that_cannot_be_written_is_said_once_and_read_past(far, tmp_path, monkeypatch, caplog):
    (tmp_path / "file").write_text("no folder")
    monkeypatch.setenv("LATENTVID_CACHE", str(tmp_path / "file"))
    far.fs.pipe_file("/bucket/x", b"12345" * 100_000)
    with caplog.at_level(logging.WARNING), files.opened("memory://bucket/x") as file:
        assert file.read() == b"12345" * 100_000
    assert caplog.text.count("cannot be kept there") == 1
