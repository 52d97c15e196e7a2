"""Clips of any length and size through a task: windows, sizes, masks, and what is kept of them."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from latentvid.data.video.reading import probe, read_frames
from latentvid.data.video.writing import clip_writer, has_full_range, write_video
from latentvid.errors import UserError
from latentvid.packing import patchify
from latentvid.pipelines import edits, local, outputs, sources, tasks
from latentvid.pipelines.canvas import Canvas
from latentvid.pipelines.clip_windows import Plan, Window, in_turn, made_anew
from latentvid.pipelines.latent_video import LatentVideoPipeline
from latentvid.pipelines.sampling import Request, Sampling

FAST = Sampling(steps=2, progress=False)
RED, BLUE = "a red 7 moves up", "a blue three"


@pytest.fixture(scope="module")
def pipeline(given_pipeline) -> LatentVideoPipeline:
    found = LatentVideoPipeline.from_pretrained(given_pipeline)
    found.set_progress_bar_config(disable=True)
    return found


def clip(frames: int, height: int = 16, width: int = 24, seed: int = 0) -> torch.Tensor:
    rand = torch.Generator().manual_seed(seed)
    return torch.randint(0, 256, (frames, height, width, 3), generator=rand, dtype=torch.uint8)


def centre(frames: int, height: int = 16, width: int = 24) -> torch.Tensor:
    mask = torch.zeros(frames, height, width, dtype=torch.bool)
    mask[:, 4:8, 8:16] = True
    return mask


def plan(frames: int, size: int, firsts: tuple[int, ...]) -> Plan:
    return Plan(frames, size, firsts, stride=4)


def chunks(whole: torch.Tensor, of: int = 3):
    return iter(whole.split(of))


# ------------------------------------------------------------------------------------------------------------- windows


@pytest.mark.parametrize("frames", [1, 2, 5, 6, 9, 13, 40])
def test_windows_cover_a_clip_and_share_whole_latent_frames(pipeline, frames):
    found = Plan.of(pipeline, frames, window=9)
    shown = {i for first in found.firsts for i in range(first, first + found.size)}
    assert shown == set(range(frames)) and found.size <= 9
    for number in range(1, len(found.firsts)):
        common = found.firsts[number - 1] + found.size - found.firsts[number]
        assert 1 <= found.shared(number) <= min(common, found.size - 1) and found.shared(number) % 4 == 1
    assert Plan.of(pipeline, frames, large=True).firsts == (0,)


def test_a_window_is_given_what_the_one_before_made_of_its_beginning(pipeline):
    whole, seen = clip(16), []

    def make(window: Window) -> torch.Tensor:
        seen.append(window)
        return torch.full_like(window.frames, 10 * (1 + window.number))

    found = torch.cat(list(made_anew(make, chunks(whole), plan(16, 9, (0, 4, 7)), Canvas.exactly((16, 24)))))
    assert [w.first for w in seen] == [0, 4, 7] and seen[0].begun is None
    assert [len(w.begun) for w in seen[1:]] == [5, 5]
    assert seen[1].begun.unique().tolist() == [10] and seen[2].begun.unique().tolist() == [20]
    for w in seen:
        assert torch.equal(w.frames, whole[w.first : w.first + 9])
        assert torch.equal(w.continued[len(w.begun) if w.number else 0 :], w.frames[len(w.begun) if w.number else 0 :])
    # blended over the frames that are shared, and over no others: 4 to 8, then 7 to 11
    assert found[:4].unique().tolist() == [10] and found[9 + 3 :].unique().tolist() == [30]
    values = found[:, 0, 0, 0].tolist()
    assert values == sorted(values) and len({*values}) > 5
    assert len({w.seed(3) for w in seen}) == 3 and seen[0].seed(3) == 3


def test_the_noise_of_a_window_is_another_one_and_its_beginning_is_kept(pipeline):
    """By noise level 0, as the model was trained: the frames that are shared come out as they were made."""
    sampling = replace(FAST, precision=torch.float32)
    whole = clip(1).expand(9, -1, -1, -1)
    windows = []

    def make(window: Window) -> torch.Tensor:
        windows.append(edits.edit_window(pipeline, "", BLUE, "sdedit", 0.9, window, seed=3, sampling=sampling))
        return windows[-1]

    list(made_anew(make, chunks(whole), plan(9, 5, (0, 4)), Canvas.exactly((16, 24))))
    want = local.reconstruct(pipeline, windows[0][-1:], sampling)
    assert torch.equal(windows[1][:1], want)
    assert not torch.equal(windows[1][1:], windows[0][1:])


def test_what_makes_its_windows_in_turn_gets_each_once_and_in_order():
    def many(windows):
        for number, frames in enumerate(windows):
            yield torch.full_like(frames, number + 1)

    found = Plan.side_by_side(7, window=3)
    assert found.firsts == (0, 3, 6) and [found.shared(i) for i in range(3)] == [0, 0, 0]
    made = torch.cat(list(made_anew(in_turn(many), chunks(clip(7)), found, Canvas.exactly((16, 24)))))
    assert made[:, 0, 0, 0].tolist() == [1, 1, 1, 2, 2, 2, 3]


# --------------------------------------------------------------------------------------------------------------- sizes


@pytest.mark.parametrize("size", [(16, 24), (15, 22), (3, 5), (33, 17)])
def test_a_size_that_the_model_does_not_make_is_filled_up_and_cut_again(pipeline, size):
    canvas = Canvas.of(pipeline, size, 5)
    whole = clip(3, *size)
    assert canvas.size[0] % 8 == canvas.size[1] % 8 == 0 and not canvas.scaled
    assert torch.equal(canvas.out(canvas.into(whole)).byte(), whole)
    mask = whole[..., 0] > 200
    assert torch.equal(canvas.mask_into(mask)[:, : size[0], : size[1]], mask)


def test_a_larger_clip_is_made_smaller_and_comes_back_in_its_size(pipeline):
    canvas = Canvas.of(pipeline, (90, 160), 5)
    assert canvas.scaled and canvas.size == canvas.content and canvas.size[0] * canvas.size[1] <= 32 * 32
    ramp = (torch.arange(160)[None, None, :, None] * torch.ones(2, 90, 1, 3)).byte()
    back = canvas.out(canvas.into(ramp))
    assert back.shape == ramp.shape and (back - ramp.float())[:, :, 10:-10].abs().max() < 3
    mask = torch.zeros(1, 90, 160, dtype=torch.bool)
    mask[0, 50, 70] = True  # one pixel is enough
    assert canvas.mask_into(mask).sum() >= 1
    assert Canvas.of(pipeline, (40, 40), 5, large=True).size == (40, 40)


@pytest.mark.parametrize("size", [(16, 200), (200, 16), (16, 400), (24, 300), (17, 129), (64, 32)])
def test_a_narrow_clip_keeps_its_shape_on_the_models_grid(pipeline, size):
    """Pressed into the trained area (32 x 32) by whole strides of 8 pixels alone, 16 x 200 would be made in 8 x 120."""
    canvas = Canvas.of(pipeline, size, 5)
    assert canvas.size == canvas.content and all(side % 8 == 0 for side in canvas.size)
    assert all(made <= native for made, native in zip(canvas.size, size, strict=True))
    aspect = canvas.size[0] * size[1] / (canvas.size[1] * size[0])
    assert 1 / 1.25 <= aspect <= 1.25
    whole = clip(2, *size)
    assert canvas.out(canvas.into(whole)).shape == whole.shape


def test_a_narrow_clip_that_would_cost_too_much_in_its_shape_is_refused(pipeline):
    with pytest.raises(UserError, match="8 x 16000 cost .* times a clip .* give --large"):
        Canvas.of(pipeline, (8, 16_000), 5)


# --------------------------------------------------------------------------------------------------------------- masks


@pytest.mark.parametrize("method", ["inversion", "sdedit", "flow"])
@pytest.mark.parametrize("folder", ["given_pipeline", "tiny_pipeline"])
def test_latents_outside_of_a_mask_stay_those_of_the_clip(method, folder, request, monkeypatch):
    pipeline = LatentVideoPipeline.from_pretrained(request.getfixturevalue(folder))
    sampling, source, mask = replace(FAST, precision=torch.float32), clip(9), centre(9)
    decoded = []
    real = pipeline.decode
    monkeypatch.setattr(pipeline, "decode", lambda latents, p=None: decoded.extend(latents) or real(latents, p))
    words = {"masks": [mask], "sampling": sampling}
    (made,) = edits.edit(pipeline, [source], [RED], [BLUE], method, **words)
    (want,) = pipeline.encode([source], torch.float32)
    kept = local.outside(pipeline, mask)
    error = (decoded[0] - want).abs().amax(0)  # [f,h,w]
    stays = token_wise(kept)
    assert error[stays].max() < 1e-3 and error[~stays].min() > 1e-3 and 0 < stays.float().mean() < 1
    assert torch.equal(made[~mask], source[~mask]) and (made[mask] != source[mask]).float().mean() > 0.5


def token_wise(kept: torch.Tensor) -> torch.Tensor:
    """Positions of tokens (2 x 2) that are wholly kept."""
    f, h, w = kept.shape
    whole = kept.reshape(f, h // 2, 2, w // 2, 2).all(4).all(2)
    return whole[:, :, None, :, None].expand(f, h // 2, 2, w // 2, 2).reshape(f, h, w)


def test_outside_of_a_mask_is_the_clip_or_its_reconstruction(pipeline):
    whole, mask, canvas = clip(9), centre(9), Canvas.exactly((16, 24))
    sampling = replace(FAST, precision=torch.float32)

    def make(window: Window) -> torch.Tensor:
        return edits.edit_window(pipeline, "", BLUE, "sdedit", None, window, sampling=sampling)

    words = (make, chunks(whole), plan(9, 9, (0,)), canvas, chunks(mask, 2))
    own = torch.cat(list(made_anew(*words)))
    assert torch.equal(own[~mask], whole[~mask])
    words = (make, chunks(whole), plan(9, 9, (0,)), canvas, chunks(mask, 2))
    soft = torch.cat(list(made_anew(*words, lambda frames: local.reconstruct(pipeline, frames, sampling))))
    want = local.reconstruct(pipeline, whole, sampling)
    assert (soft.float() - want.float())[~mask].abs().max() / 255 < 1e-3
    assert not torch.equal(want[~mask], whole[~mask]) and not torch.equal(soft[mask], want[mask])


def test_a_window_without_a_painted_pixel_is_not_made(pipeline):
    whole, mask = clip(13), torch.zeros(13, 16, 24, dtype=torch.bool)
    mask[10, 3, 3] = True
    made = []

    def make(window: Window) -> torch.Tensor:
        made.append(window.number)
        return 0 * window.frames

    found = torch.cat(
        list(made_anew(make, chunks(whole), plan(13, 5, (0, 4, 8)), Canvas.exactly((16, 24)), chunks(mask)))
    )
    assert made == [2] and torch.equal(found[~mask], whole[~mask]) and found[mask].sum() == 0


@pytest.mark.parametrize("level", [0.3, 0.95])
def test_what_is_known_keeps_the_noise_that_an_edit_begins_with(pipeline, level):
    """Not other noise: an inversion's, say, which leads to the clip."""
    given, start = (torch.randn(4, 2, 4, 6, generator=torch.Generator().manual_seed(i)) for i in (0, 1))
    known = torch.zeros(2, 4, 6, dtype=torch.bool)
    known[:, :2] = True
    request = Request(prompt=RED, grid=(2, 4, 6), given=given, known=known, start=start, level=level)
    batch, _ = pipeline._prepare([request], replace(FAST, condition="replacement"))
    want, _ = patchify([start], pipeline.transformer.patch)
    assert batch.known.any() and torch.allclose(batch.z, want, atol=1e-5)
    clean, _ = patchify([given], pipeline.transformer.patch)
    ended = batch.put_back(pipeline.scheduler, 0 * batch.z, batch.levels[-1])
    assert torch.allclose(ended, torch.where(batch.known, clean, 0.0), atol=1e-5)


# --------------------------------------------------------------------------------------------------------------- files


def test_full_range_is_kept_and_frames_look_the_same(tmp_path):
    frames = clip(3).float().mean((1, 2), keepdim=True).byte().expand(3, 16, 24, 3).contiguous()
    for full in (False, True):
        file = tmp_path / f"{full}.mp4"
        with clip_writer(file, 16, 24, 8, full_range=full) as append:
            append(frames)
        assert has_full_range(file) == full
        assert (read_frames(file).float() - frames.float()).abs().max() < 4


@pytest.mark.parametrize("task", ["edit", "inpaint"])
def test_a_long_clip_keeps_sound_rate_size_and_range_and_is_read_by_windows(task, pipeline, tmp_path, monkeypatch):
    source = sounding(tmp_path / "clip.mp4", frames=14)
    write_video(tmp_path / "mask.png", centre(1, 30, 50)[..., None].expand(-1, -1, -1, 3).byte() * 255, 1)
    opened = sources.open_source(source, pipeline)
    mask = sources.open_mask(tmp_path / "mask.png", opened)
    held = []

    def make(window: Window) -> torch.Tensor:
        held.append(len(window.frames))
        if task == "inpaint":
            return edits.inpaint_window(pipeline, RED, window, sampling=FAST)
        return edits.edit_window(pipeline, "", RED, "sdedit", 0.5, window, sampling=FAST)

    pieces = sources.edited(opened, make, mask if task == "inpaint" else None)
    outputs.write_edited(tmp_path / "out.mp4", pieces, opened, opened.fps, "said")
    assert probe(tmp_path / "out.mp4") == probe(source) and has_full_range(tmp_path / "out.mp4")
    assert packets(tmp_path / "out.mp4") == packets(source) and max(held) == 5 and len(held) > 3


def test_frames_between_those_of_a_long_clip_are_of_its_size_and_read_some_at_a_time(pipeline, tmp_path, monkeypatch):
    monkeypatch.setattr(sources, "CHUNK", 2)
    path = sounding(tmp_path / "clip.mp4", frames=5)
    source = sources.open_source(path, pipeline, together=9)
    assert source.canvas.size != source.size and max(len(chunk) for chunk in source.seen()) == 2
    words = {"tokens_per_pack": 1, "sampling": FAST}  # pair by pair
    pieces = list(source.shown(tasks.filled_in(pipeline, source.seen(), 2, RED, **words)))
    want = tasks.raise_rate(pipeline, source.canvas.into(read_frames(path)), 2, RED, **words)
    assert max(len(piece) for piece in pieces) <= 2
    assert torch.equal(torch.cat(pieces), source.canvas.out(want).round().byte())
    outputs.write_edited(tmp_path / "out.mp4", iter(pieces), source, 2 * source.fps, rate=2)
    assert probe(tmp_path / "out.mp4") == replace(probe(path), frames=9, fps=60000 / 1001)
    assert packets(tmp_path / "out.mp4") == packets(path) and has_full_range(tmp_path / "out.mp4")


def sounding(path: Path, frames: int) -> Path:
    """A clip of full range and odd size, 30000/1001 fps, with a tone."""
    import av
    import numpy as np

    with clip_writer(path.with_suffix(".v.mp4"), 30, 50, 30000 / 1001, full_range=True) as append:
        append(clip(frames, 30, 50))
    with av.open(str(path.with_suffix(".v.mp4"))) as video, av.open(str(path), "w") as file:
        stream, sound = file.add_stream_from_template(video.streams.video[0]), file.add_stream("aac", rate=16000)
        for i in range(int(frames / 30 * 16000 / 1024)):
            wave = np.sin(np.arange(1024) / 10).astype(np.float32)[None]
            frame = av.AudioFrame.from_ndarray(wave, format="fltp", layout="mono")
            frame.sample_rate, frame.pts = 16000, 1024 * i
            file.mux(sound.encode(frame))
        file.mux(sound.encode(None))
        for packet in video.demux(video=0):
            if packet.dts is not None:
                packet.stream = stream
                file.mux(packet)
    return path


def packets(path: Path) -> list[bytes]:
    import av

    with av.open(str(path)) as file:
        return [bytes(packet) for packet in file.demux(audio=0) if packet.size]


@pytest.mark.parametrize(
    ("mask", "message"),
    [
        (clip(6), "mask .* has 6 frames, .* 9"),
        (clip(9, 16, 32), "is 16 x 32 pixels, .* 16 x 24"),
        (0 * clip(1), "black all over"),
    ],
)
def test_masks_that_do_not_fit_are_refused_by_name(mask, message, pipeline, tmp_path):
    write_video(tmp_path / "clip.mp4", clip(9), 8)
    write_video(tmp_path / "mask.mp4", mask, 8)
    source = sources.open_source(tmp_path / "clip.mp4", pipeline)
    with pytest.raises(UserError, match=message):
        sources.open_mask(tmp_path / "mask.mp4", source)


def test_a_picture_is_painted_beyond_its_edges(pipeline, tmp_path):
    write_video(tmp_path / "a.png", clip(1), 8)
    source = sources.open_source(tmp_path / "a.png", pipeline, beyond=(0, 5, 8, 0))
    assert source.size == (21, 32)
    mask = sources.open_mask(None, source)
    assert mask.share == pytest.approx(1 - 16 * 24 / (21 * 32))
    make = lambda window: edits.inpaint_window(pipeline, RED, window, sampling=FAST)  # noqa: E731
    (made,) = torch.cat(list(sources.edited(source, make, mask)))
    assert torch.equal(made[:16, 8:], clip(1)[0]) and made[16:].float().std() > 1
    with pytest.raises(UserError, match="pixels beyond one of its edges"):
        sources.open_source(tmp_path / "a.png", pipeline, beyond=(0, 0, 0, 0))


def test_a_mask_grows_on_all_sides():
    mask = torch.zeros(1, 9, 9, dtype=torch.bool)
    mask[0, 4, 4] = True
    assert sources.grown(mask, 2).sum() == 25 and bool(sources.grown(mask, 2)[0, 2, 6])


def test_the_mask_of_a_picture_comes_some_frames_at_a_time(pipeline, tmp_path):
    """Of a long clip all of it would be hundreds of MB, and its sum eight times that."""
    write_video(tmp_path / "clip.mp4", clip(40), 8)
    write_video(tmp_path / "mask.png", centre(1)[..., None].expand(-1, -1, -1, 3).byte() * 255, 8)
    source = sources.open_source(tmp_path / "clip.mp4", pipeline)
    for found in (sources.open_mask(tmp_path / "mask.png", source), sources.Mask(tmp_path / "mask.png", grow=1)):
        lengths = [len(chunk) for chunk in source.mask_chunks(found)]
        assert sum(lengths) == 40 and max(lengths) <= sources.CHUNK
    assert sources.open_mask(tmp_path / "mask.png", source).share == pytest.approx(32 / (16 * 24))
