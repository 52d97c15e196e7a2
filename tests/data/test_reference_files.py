"""References of clips: which files, in which sizes and frames, with which flip; what is refused or replaced."""

import json
import pickle
from pathlib import Path

import pytest
import torch
from clip_sources import make_clip

from latentvid.config.parsing import load_config, to_dict
from latentvid.config.schema import DitConfig
from latentvid.config.yaml_files import ConfigError
from latentvid.data.clips import ClipSource, Transform, open_sources
from latentvid.data.plan.plan import Draw
from latentvid.data.video.writing import write_video
from latentvid.errors import UserError
from latentvid.references import (
    ReferenceColumn,
    Role,
    as_json,
    check_role,
    header_of,
    numbers_of,
    read_roles,
    roles_in,
    save_roles,
    saved_roles,
    with_more,
)
from latentvid.rng import generator

TRANSFORM = Transform(spatial_stride=8, temporal_stride=4, max_frames=5, flip=True)
ROLES = {
    "control": ReferenceColumn(place="aligned", column="control", dropout=0.0),
    "small": ReferenceColumn(place="aligned", column="control", max_area=16 * 16, dropout=0.0),
    "subject": ReferenceColumn(place="beside", column="subject", max_area=16 * 24, max_frames=3, dropout=0.5),
}


@pytest.fixture
def folder(tmp_path) -> Path:
    """Clips a to c of 11 frames, a picture d; controls of a (a clip), b (a picture); subjects of a (two) and c."""
    for name in "abc":
        make_clip(tmp_path / f"{name}.mp4", 11)
    make_clip(tmp_path / "control.mp4", 12, 48, 48)
    ramp = torch.arange(48, dtype=torch.uint8)[None, None, :, None].expand(1, 32, 48, 3).contiguous()
    for name in ("d", "edges", "subject"):
        write_video(tmp_path / f"{name}.png", ramp, 1.0)
    write(
        tmp_path,
        {"path": "a.mp4", "caption": "a", "control": "control.mp4", "subject": ["subject.png", "c.mp4"]},
        {"path": "b.mp4", "caption": "b", "control": "edges.png", "subject": None},
        {"path": "c.mp4", "caption": "c", "control": "", "subject": [str(tmp_path / "subject.png")]},
        {"path": "d.png", "caption": "d"},
    )
    return tmp_path


def write(folder: Path, *rows: dict) -> Path:
    file = folder / "list.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return file


def opened(folder: Path, roles=ROLES, **changes) -> ClipSource:
    return open_sources([folder / "list.jsonl"], Transform(**{**vars(TRANSFORM), **changes}), roles=roles)


def test_sizes_are_known_before_anything_is_decoded(folder):
    source = opened(folder)
    assert [source.shapes[i] for i in range(7)] == [(5, 32, 32)] * 6 + [(1, 32, 48)]
    of_a, of_b, of_c, of_d = (list(source.references.shapes[i]) for i in (0, 2, 4, 6))
    assert of_a == [
        ("control", (5, 32, 32)),
        ("small", (5, 16, 16)),
        ("subject", (1, 16, 24)),
        ("subject", (1, 16, 16)),  # 3 frames at most, of which 1 + 4k is 1
    ]
    assert of_b == [("control", (1, 32, 32)), ("small", (1, 16, 16))]
    assert of_c == [("subject", (1, 16, 24))] and of_d == []
    assert source.references.shapes[1] == source.references.shapes[0]  # the clip's second window
    assert "subject, beside: 3 references of 2 clips" in source.summary()
    again = pickle.loads(pickle.dumps(source))
    assert list(again.references.shapes) == list(source.references.shapes)


def test_what_is_aligned_has_the_clips_frames_and_flip(folder):
    source = opened(folder)
    for number in range(6):
        index = number % 2
        clip = source.load(index, 0, number)
        start = source.start(index, 0, number)
        grey = 20 + 4 * torch.arange(start, start + 5)
        control, small = clip.references[:2]
        assert (control.float().mean((1, 2, 3)) - grey).abs().max() < 3 and control.shape == (5, 32, 32, 3)
        assert (small.float().mean((1, 2, 3)) - grey).abs().max() < 3 and small.shape == (5, 16, 16, 3)
        (picture,) = source.load(2, 0, number).references[:1]
        flipped = bool((picture[0, 0, 0] > picture[0, 0, -1]).all())  # the ramp grows to the right
        assert flipped == bool(torch.rand((), generator=generator(0, number, "flip")) < 0.5)


def test_dropout_takes_roles_as_a_whole_by_the_samples_number(folder):
    source = opened(folder)
    kept = [source.references.kept(0, 3, number) for number in range(200)]
    assert set(kept) == {(0, 1), (0, 1, 2, 3)} and kept == [source.references.kept(0, 3, n) for n in range(200)]
    assert abs(sum(len(k) == 2 for k in kept) / 200 - 0.5) < 0.12
    each = list(source.load_each([Draw(n, 0) for n in range(4)], 3))
    assert [len(clip.references) for clip in each] == [len(k) for k in kept[:4]]
    alone = source.load(0, 3, 2)
    assert all(torch.equal(a, b) for a, b in zip(each[2].references, alone.references, strict=True))


def test_a_damaged_reference_is_replaced_with_its_clip_and_put_aside(folder):
    make_clip(folder / "other.mp4", 11)
    rows = [
        {"path": f"{name}.mp4", "caption": name, "control": f"{c}.mp4"}
        for name, c in (("a", "control"), ("b", "other"))
    ]
    write(folder, *rows, {"path": "c.mp4", "caption": "c", "control": "edges.png"})
    roles = {"control": ROLES["control"]}
    source = opened(folder, roles)
    (folder / "other.mp4").write_bytes(b"no clip at all")
    clip = source.load(2, 0, 0)  # of b; c has a picture, so that a alone is alike
    assert clip.replaced and source.path(clip.index).endswith("a.mp4") and clip.references[0].shape == (5, 32, 32, 3)
    assert list(source.quarantine.reasons) == [str(folder / "other.mp4")]
    each = list(source.load_each([Draw(1, 2), Draw(2, 3)], 0))
    assert all(clip.replaced for clip in each)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"control": "nowhere.mp4"}, r"references\.control: 1 file of .* cannot be used.*\n.*missing.*nowhere"),
        ({"control": 3}, r"references\.control: .*a\.mp4.*holds 3, no path"),
        ({"control": "short.mp4"}, r"short\.mp4 has 9 frames, its clip .*a\.mp4.* has 11"),
        ({"subject": "tiny.png"}, r"references\.subject: .*tiny\.png: a clip of 4x4 is smaller than one stride"),
    ],
)
def test_what_cannot_be_shown_is_one_message(changes, message, folder):
    make_clip(folder / "short.mp4", 9)
    write_video(folder / "tiny.png", torch.zeros(1, 4, 4, 3, dtype=torch.uint8), 1.0)
    row = {"path": "a.mp4", "caption": "a", "control": "control.mp4", "subject": "subject.png"}
    write(folder, row | changes)
    with pytest.raises(UserError, match=message):
        opened(folder)


def test_columns_that_are_not_there_and_other_rates(folder):
    with pytest.raises(UserError, match="no manifest has a column `pose`"):
        opened(folder, {"pose": ReferenceColumn(place="aligned", column="pose")})
    write(folder, {"path": "a.mp4", "caption": "a", "control": ""})
    with pytest.raises(UserError, match="the column `control` is empty in all rows"):
        opened(folder, {"control": ROLES["control"]})
    grey = torch.zeros(12, 32, 32, 3, dtype=torch.uint8)
    write_video(folder / "slow.mp4", grey, 4.0)
    write(folder, {"path": "a.mp4", "caption": "a", "control": "slow.mp4"})
    opened(folder, {"control": ROLES["control"]})  # frame by frame
    with pytest.raises(UserError, match=r"slow\.mp4 has 4 frames a second, its clip .* 8: .*give both one rate"):
        opened(folder, {"control": ROLES["control"]}, fps=4.0)


def test_other_references_are_other_data(folder):
    before = opened(folder).identity()
    assert set(before["prints"]) == {"names", "captions", "references"}
    assert set(opened(folder, None).identity()["prints"]) == {"names", "captions"}
    write(folder, *(json.loads(line) | {"control": None} for line in (folder / "list.jsonl").read_text().splitlines()))
    after = opened(folder, {"subject": ROLES["subject"]}).identity()
    assert after["prints"]["references"] != before["prints"]["references"]


# --- the configuration, and what is saved of it ---

PARTS = ["run.dir=r", "vae=v", "text_encoder=t", "data.manifest=m.jsonl"]


def test_the_configuration_reads_and_writes_them(tmp_path):
    file = tmp_path / "c.yaml"
    file.write_text("data:\n  references:\n    pose: {column: pose, place: aligned}\n")
    config = load_config(DitConfig, file, [*PARTS, "data.references.pose.dropout=0.2"])
    assert config.data.references == {"pose": ReferenceColumn(column="pose", place="aligned", dropout=0.2)}
    assert to_dict(config)["data"]["references"]["pose"]["dropout"] == 0.2
    for line, message in [
        (
            "{pose: {column: p, place: above}}",
            "data.references.pose.place='above': expected one of 'beside', 'aligned'",
        ),
        ("{pose: {place: beside}}", "data.references.pose: give column, which names the files"),
        (
            "{pose: {column: p, place: beside, drop: 1}}",
            "unknown key data.references.pose.drop.*did you mean .*dropout",
        ),
        ("{a b: {column: p, place: beside}}", "data: references.a b: name a role by letters"),
        ("{pose: {column: p, place: aligned, max_frames: 3}}", "max_frames is of references beside the clip"),
        ("{pose: {column: p, place: beside, dropout: 2}}", "dropout=2"),
    ]:
        with pytest.raises(ConfigError, match=message):
            load_config(DitConfig, None, [*PARTS, f"data.references={line}"])
    with pytest.raises(ConfigError, match="references are read from files as it trains, which a cache does not hold"):
        load_config(DitConfig, None, [*PARTS[:3], "data.latents=c", "data.references={p: {column: p, place: beside}}"])


def test_roles_of_a_lora_keep_the_numbers_that_they_were_trained_with():
    """What the numbers decide is where a reference beside the clip stands in time."""
    face, style, pose = (
        Role(place=place, max_frames=n) for place, n in (("beside", 1), ("beside", 2), ("aligned", None))
    )
    joined = with_more({"face": face, "pose": pose}, {"style": style}, "x")
    assert list(joined) == ["face", "pose", "style"] and numbers_of(joined) == {"face": 0, "pose": 0, "style": 0}
    assert numbers_of(with_more({"face": face}, {"face": face, "style": style}, "x")) == {"face": 0, "style": 1}
    again = with_more(joined, {"style": style}, "x")
    assert again == joined == read_roles(as_json(joined), "x")
    assert with_more({}, {"face": face, "style": style}, "x") == {"face": face, "style": style}
    assert numbers_of(with_more({"face": face, "style": style}, {"style": style}, "x")) == {"face": 0, "style": 0}
    with pytest.raises(UserError, match="x was trained with another reference style"):
        with_more({"style": style}, {"style": face}, "x")
    for wrong in (-1, 0.5, True):
        with pytest.raises(UserError, match="must be roles with their places"):
            read_roles({"a": {"place": "beside", "number": wrong}}, "the pipeline")


def test_roles_are_saved_and_read(tmp_path):
    roles = {name: column.role(1024, 9) for name, column in ROLES.items()}
    assert roles["subject"] == Role(place="beside", max_area=16 * 24, max_frames=3)
    assert ReferenceColumn(place="beside", column="x").role(1024, 9) == Role(
        place="beside", max_area=1024, max_frames=9
    )
    assert roles["control"] == Role(place="aligned") and numbers_of(roles)["subject"] == 0
    assert roles_in(header_of(roles), "file") == roles and roles_in({}, "file") == {} == saved_roles(tmp_path)
    save_roles(tmp_path, roles)
    assert saved_roles(tmp_path) == roles
    (tmp_path / "references.json").write_text("{")
    with pytest.raises(UserError, match=r"references\.json cannot be read"):
        saved_roles(tmp_path)
    beside = {"place": "beside"}
    for wrong in ({"a": 3}, 3, {"a": {}}, {"a": {"place": "above"}}, {"a": beside | {"b": 1}}):
        with pytest.raises(UserError, match="must be roles with their places"):
            read_roles(wrong, "the pipeline")
    for key, value in (("max_area", "much"), ("max_frames", 0), ("max_area", 1.5)):
        with pytest.raises(UserError, match=f"must be roles with their places .*{key}=.*must be a whole number"):
            read_roles({"a": beside | {key: value}}, "the pipeline")
    with pytest.raises(UserError, match="there is no such role: this model knows control, small, subject"):
        check_role("pose", roles)
    with pytest.raises(UserError, match="this model was trained without references"):
        check_role("pose", {})
