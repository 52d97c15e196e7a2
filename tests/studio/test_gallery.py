"""What the studio keeps on disk: clips with how they were made, uploads by their content, and choices between clips."""

import json
import random

import pytest
import torch
from PIL import Image
from studios import put

from latentvid.data.manifest.manifest import read_manifest
from latentvid.data.video.reading import probe, read_frames
from latentvid.data.video.writing import write_video
from latentvid.errors import UserError
from latentvid.evaluation.compare import count_choices
from latentvid.preference.label import by_choices
from latentvid.studio.comparing import FILE, Blind, blind, keep_choice, side_by_side
from latentvid.studio.gallery import Gallery
from latentvid.studio.gallery_page import about, caption, listed, partners
from latentvid.studio.limits import Limits
from latentvid.studio.mask import Drawn, first_frame, mask_of


def clip(value: int = 0, frames: int = 4, size: int = 16) -> torch.Tensor:
    return torch.full((frames, size, size, 3), value, dtype=torch.uint8)


def test_an_item_comes_back_from_disk_as_it_was_made(tmp_path):
    gallery = Gallery(tmp_path / "g")
    first = put(gallery, clip(), prompt="a <b>7</b>\n", seed=3, steps=4, lora=[["x", "0.5"]])
    assert Gallery(tmp_path / "g").items() == [first] == [gallery.item(first.name)]
    assert first.again() == ("t2v", first.values)
    assert first.vary() == ("t2v", {**first.values, "seed": 4})
    second = put(gallery, clip(), prompt="b")
    assert second.vary()[1] == {"prompt": "b", "seed": 1}  # what is not said is seed 0
    assert gallery.items() == [second, first]  # the newest first, also within a second
    assert "a <b>7</b>" in about(first) and caption(first) == "a <b>7</b> (seed 3)"


@pytest.mark.parametrize(
    "text", ["", "[]", "{}", '{"values": 1}', '{"seed": "<img>"}', "x" * 2_000_000], ids=lambda text: text[:10]
)
def test_what_is_no_item_is_passed_over(tmp_path, text):
    gallery = Gallery(tmp_path)
    item = put(gallery, clip(), prompt="a", seed=1)
    said = json.loads((tmp_path / item.name).with_suffix(".json").read_text())
    if "seed" in text:
        text = json.dumps(said | {"values": {"seed": "<img>"}})
    (tmp_path / item.name).with_suffix(".json").write_text(text)
    (tmp_path / "notes.txt").write_text("mine")
    assert gallery.items() == []
    for name in (item.name, "../x.mp4", "/etc/passwd", "notes.txt"):
        with pytest.raises(UserError, match="is not in the gallery any more"):
            gallery.item(name)


def test_a_link_in_the_gallery_leads_nowhere(tmp_path):
    gallery = Gallery(tmp_path / "g")
    item = put(gallery, clip(), prompt="a")
    outside = tmp_path / "secret.mp4"
    (tmp_path / "g" / item.name).rename(outside)
    (tmp_path / "g" / item.name).symlink_to(outside)
    assert gallery.items() == []


def test_an_upload_is_kept_under_a_name_of_its_content(tmp_path):
    gallery = Gallery(tmp_path / "g")
    file = tmp_path / "<img src=x onerror=alert(1)>=:.MP4"
    write_video(tmp_path / "a.mp4", clip(), 8)
    (tmp_path / "a.mp4").rename(file)
    name = gallery.keep(str(file))
    assert name == gallery.keep(str(file)) and name.startswith("inputs/") and name.endswith(".mp4")
    assert gallery.kept(name).read_bytes() == file.read_bytes()
    assert len(list((tmp_path / "g" / "inputs").iterdir())) == 1
    for other in ("inputs/../../secret.png", "/etc/passwd", "inputs/0123456789abcdef.mp4"):
        with pytest.raises(UserError, match="upload it again"):
            gallery.kept(other)


def test_uploads_are_bounded_and_are_clips(tmp_path):
    long, text, large = tmp_path / "long.mp4", tmp_path / "text.png", tmp_path / "large.mp4"
    write_video(long, clip(frames=41), 4)
    text.write_text("no picture")
    large.write_bytes(bytes(1_000_001))
    (tmp_path / "run.sh").write_text("x")
    (tmp_path / "link.mp4").symlink_to(long)
    gallery = Gallery(tmp_path / "g", Limits(megabytes=1, seconds=10))
    for file, said in [(long, "41 frames, and at most 20,000 in 10 s can be"), (large, "larger than 1 MB"),
                       (text, "text.png"), (tmp_path / "run.sh", "give a video or a picture"),
                       (tmp_path / "link.mp4", "give a video"), (tmp_path / "no.mp4", "give a")]:  # fmt: skip
        with pytest.raises(UserError, match=said) as error:
            gallery.keep(str(file))
        assert str(tmp_path) not in str(error.value)  # of the machine's folders nothing is told
    write_video(long, clip(frames=40), 4)
    assert gallery.keep(str(long))


def test_the_list_is_searched_by_prompt_and_partners_share_it(tmp_path):
    class Of:
        gallery = Gallery(tmp_path)

    items = [put(Of.gallery, clip(), prompt=prompt, seed=i) for i, prompt in enumerate(["a Dog", "a cat", "a Dog"])]
    assert {item.name for item in listed(Of, " dog ", 9)} == {items[0].name, items[2].name}
    assert len(listed(Of, "", 2)) == 2
    assert [name for _, name in partners(Of, items[0])] == [items[2].name]


def test_choices_become_pairs_for_preference_tuning(tmp_path):
    """The left side is drawn; whichever it is, the clip that was chosen is the preferred one."""
    gallery, folder = Gallery(tmp_path / "g"), tmp_path / "g" / "comparisons"
    items = [put(gallery, clip(60 * i), prompt="a red 7", seed=i) for i in range(3)]
    chosen = [
        (Blind(items[0], items[1], "A"), "left"),  # items[0]
        (Blind(items[0], items[2], "B"), "left"),  # items[2]
        (Blind(items[1], items[2], "A"), "tie"),
    ]
    assert [keep_choice(folder, gallery, pair, choice) for pair, choice in chosen] == [1, 2, 3]
    pairs = by_choices(folder, [folder / FILE], None)
    assert pairs.ties == 1
    found = [[(tmp_path / path).read_bytes() for path in row[:2]] for row in pairs.rows]
    data = [gallery.file(item).read_bytes() for item in items]
    assert found == [[data[0], data[1]], [data[2], data[0]]]
    pairs.write(tmp_path / "pairs.jsonl")
    assert [sample.caption for sample in read_manifest(tmp_path / "pairs.jsonl").samples] == ["a red 7"] * 2
    assert "Which looks better?" in count_choices(folder, [folder / FILE], None)


def test_sides_are_drawn_and_nothing_else_tells_the_clips_apart(tmp_path):
    gallery = Gallery(tmp_path)
    a, b = (put(gallery, clip(100 * i), prompt="p", seed=i) for i in range(2))
    draws = random.Random(0)
    assert {blind(a, b, draws).left for _ in range(20)} == {"A", "B"}
    pair = Blind(a, b, "B")
    assert pair.sides == (b, a)
    (tmp_path / "pair.mp4").write_bytes(side_by_side(gallery, pair))
    assert (probe(tmp_path / "pair.mp4").width, probe(tmp_path / "pair.mp4").frames) == (32, 4)


def test_what_does_not_compare_is_refused(tmp_path):
    gallery = Gallery(tmp_path)
    a, b = put(gallery, clip(), prompt="a"), put(gallery, clip(), prompt="b")
    with pytest.raises(UserError, match="choose two clips"):
        blind(a, a)
    with pytest.raises(UserError, match="compare clips of the same prompt"):
        blind(a, b)
    with pytest.raises(UserError, match="choose one of left, tie, right"):
        keep_choice(tmp_path / "c", gallery, Blind(a, a, "A"), "up")


def test_a_mask_is_where_it_is_painted_at_the_clips_size(tmp_path):
    """On a frame that is enlarged where it is small."""
    write_video(tmp_path / "a.mp4", clip(90, size=32), 8)
    shown = first_frame(str(tmp_path / "a.mp4"))
    assert shown.size == (640, 640) and abs(shown.getpixel((0, 0))[0] - 90) < 4
    assert first_frame(None) is None and first_frame(str(tmp_path / "no.mp4")) is None
    layer = Image.new("RGBA", shown.size, (0, 0, 0, 0))
    layer.paste((255, 255, 255, 255), (320, 0, 640, 160))
    drawn = Drawn.of({"background": shown, "layers": [None, layer], "composite": shown})
    mask = mask_of(drawn, (32, 32))
    assert mask.white[:8, 16:].all() and mask.white.sum() == 8 * 16
    with mask.saved() as file:
        assert (read_frames(file)[0, ..., 0].numpy() == mask.white * 255).all()
    assert mask_of(Drawn([Image.new("RGBA", (9, 9), (255, 255, 255, 0))]), (32, 32)) is None
    assert Drawn.of(None).layers == [] and mask_of(Drawn([]), (32, 32)) is None
