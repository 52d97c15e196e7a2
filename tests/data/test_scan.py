"""Searching folders: what has a caption is used, or counted by the reason why not."""

import os

import pytest
import torch

from latentvid.data.manifest.captions import encoding_of, read_caption
from latentvid.data.manifest.manifest import scan_folder
from latentvid.data.video.writing import write_video
from latentvid.errors import ClipError, UserError

CLIP = torch.zeros(3, 16, 16, 3, dtype=torch.uint8)


def test_links_are_followed_once_and_what_is_not_used_is_counted(tmp_path):
    folder, outside = tmp_path / "set", tmp_path / "outside"
    for place in (folder / "sub", folder / ".cache", outside):
        place.mkdir(parents=True)
    write_video(folder / "a.mp4", CLIP, 8)
    clip = (folder / "a.mp4").read_bytes()
    for path in ("b.MP4", "sub/c.mp4", ".hidden.mp4", ".cache/d.mp4", "e.xyz", "f.mp4", "g.mp4"):
        (folder / path).write_bytes(clip)
        (folder / path).with_suffix(".txt").write_text("x")
    (folder / "f.txt").unlink()
    (folder / "g.txt").unlink()
    os.mkfifo(folder / "g.txt")  # opening it would wait for ever
    (folder / "a.TXT").write_text("one")
    (folder / "alone.txt").write_text("of nothing")
    (folder / "train.jsonl").touch()
    (outside / "h.mp4").write_bytes(clip)
    (outside / "h.txt").write_text("two")
    (folder / "linked").symlink_to(outside)
    (folder / "loop").symlink_to(folder)
    (folder / "again").symlink_to(folder / "sub")
    (folder / "gone.mp4").symlink_to(tmp_path / "nowhere")
    (folder / "gone.txt").write_text("gone")
    (folder / "i.mp4").write_bytes(clip)
    (folder / "i.txt").symlink_to(folder / "i.txt")
    manifest = scan_folder(folder)
    names = [os.path.relpath(sample.path, folder) for sample in manifest.samples]
    assert names == ["a.mp4", "b.MP4", "linked/h.mp4", "sub/c.mp4"]
    assert sorted((os.path.relpath(path, folder), reason) for path, reason in manifest.dropped) == [
        (".cache/d.mp4", "hidden"),
        (".hidden.mp4", "hidden"),
        ("again", "folder-twice"),
        ("alone.txt", "no-clip"),
        ("e.xyz", "unknown-ending"),
        ("f.mp4", "no-caption"),
        ("g.mp4", "no-caption"),
        ("gone.mp4", "missing"),
        ("i.mp4", "no-caption"),
        ("loop", "folder-twice"),
    ]


def test_files_without_a_caption_beside_them_have_those_that_are_given(tmp_path):
    for name in ("a.mp4", "b.mp4"):
        write_video(tmp_path / name, CLIP, 8)
    (tmp_path / "a.txt").write_text("its own")
    (tmp_path / "c.txt").write_text("of nothing")
    found = scan_folder(tmp_path, captions=["a sks\n dog", "sks"])
    assert [found.samples.captions(i) for i in range(2)] == [["its own"], ["a sks dog", "sks"]]
    assert [reason for _, reason in found.dropped] == ["no-clip"]
    with pytest.raises(UserError, match="a caption for all files is empty"):
        scan_folder(tmp_path, captions=[" "])


FOX = "一只红色的狐狸在雪地里奔跑"


@pytest.mark.parametrize(
    ("data", "text"),
    [
        (b"A dog runs.\n\nThe camera pans left,\r\n golden  light.\tStyle: 35mm.\n", None),
        (FOX.encode(), FOX),
        (FOX.encode("utf-8-sig"), FOX),
        (FOX.encode("utf-16"), FOX),
        ("\ufeff".encode("utf-16-be") + FOX.encode("utf-16-be"), FOX),
        (FOX.encode("utf-32"), FOX),
        ("a red café".encode("utf-16-le"), "a red café"),
        ("a red café".encode("utf-16-be"), "a red café"),
        ("a red café".encode("utf-32-le"), "a red café"),
        ("a red café".encode("utf-32-be"), "a red café"),
    ],
)
def test_a_caption_is_the_whole_text_in_one_line(tmp_path, data, text):
    (tmp_path / "a.txt").write_bytes(data)
    whole = "A dog runs. The camera pans left, golden light. Style: 35mm."
    assert read_caption(tmp_path / "a.txt") == (text or whole)


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        ("红色的狐狸".encode("gbk"), "caption-encoding"),
        (b"a dog\x92s caf\xe9", "caption-encoding"),
        ("a dog\x92s".encode(), "caption-encoding"),  # Windows-1252 that was taken for Latin-1 once
        ("caf\ufffd".encode(), "caption-encoding"),  # lost before it came here
        (FOX.encode("utf-16-le"), "caption-encoding"),  # may be anything
        ("a red fox".encode("utf-16")[:-1], "caption-encoding"),
        (b"a\0b", "caption-encoding"),
        (b"\x89PNG\r\n\x1a\n\0\0\0\r", "caption-encoding"),
        (b" \n\t\n", "empty-caption"),
        (b"", "empty-caption"),
        (b"x" * ((1 << 20) + 1), "caption-too-long"),
        (None, "no-caption"),
    ],
)
def test_a_caption_that_is_not_certain_is_refused_by_reason(tmp_path, data, reason):
    if data is not None:
        (tmp_path / "a.txt").write_bytes(data)
    with pytest.raises(ClipError, match=r"a\.txt") as error:
        read_caption(tmp_path / "a.txt")
    assert error.value.reason == reason


def test_zero_bytes_make_utf_16_only_where_most_letters_have_one():
    assert encoding_of(b"ab\0d") == encoding_of(b"abcd\0d") == "utf-8"
    assert encoding_of("雪ab".encode("utf-16-le")) == "utf-8"  # 2 of 3: not certain
