"""Frames read and written chunk by chunk are those of the whole, and sound is copied in step."""

import av
import numpy as np
import pytest
import torch

from latentvid.data.video.reading import probe, read_chunks, read_frames
from latentvid.data.video.writing import clip_writer, copies_audio, write_video
from latentvid.errors import ClipError, UserError

RATE = 8000


def clip(frames: int, height: int = 32, width: int = 48) -> torch.Tensor:
    levels = torch.arange(frames, dtype=torch.uint8)[:, None, None, None] * 4
    return levels.expand(-1, height, width, 3).contiguous()


def with_sound(path, frames: int, fps: int, codec: str = "aac", delay: int = 0) -> None:
    """A clip with a tone; its first frame is shown at frame `delay`."""
    with av.open(str(path), "w") as output:
        video, audio = output.add_stream("libx264", rate=fps), output.add_stream(codec, rate=RATE, layout="mono")
        video.height, video.width, video.pix_fmt = 32, 48, "yuv420p"
        for index, pixels in enumerate(clip(frames).numpy()):
            frame = av.VideoFrame.from_ndarray(pixels, format="rgb24").reformat(format="yuv420p")
            frame.pts = index + delay
            output.mux(video.encode(frame))
        tone = np.sin(np.arange((frames + delay) * RATE // fps) / 5)[None] * 0.5
        samples = av.AudioFrame.from_ndarray(tone.astype(np.float32), format="fltp", layout="mono")
        samples.sample_rate, samples.pts = RATE, 0
        resampler = av.AudioResampler(format=audio.format.name, layout="mono", rate=RATE, frame_size=audio.frame_size)
        for part in [*resampler.resample(samples), *resampler.resample(None), None]:
            output.mux(audio.encode(part))
        output.mux(video.encode(None))


def sound(path) -> list[tuple[float, bytes]]:
    """Its packets: when each begins, in seconds from the first frame on, and what it holds."""
    with av.open(str(path)) as container:
        video, audio = container.streams.video[0], container.streams.audio[0]
        begin = float((video.start_time or 0) * video.time_base)
        packets = [packet for packet in container.demux(audio) if packet.size]
        return [(round(float(packet.pts * audio.time_base) - begin, 3), bytes(packet)) for packet in packets]


@pytest.mark.parametrize(("first", "later"), [(1, 4), (5, 4), (10, 1), (23, 1), (40, 40)])
def test_chunks_are_the_whole_in_order(tmp_path, first, later):
    write_video(tmp_path / "in.mp4", clip(23), 8)
    chunks = list(read_chunks(tmp_path / "in.mp4", first, later))
    assert torch.equal(torch.cat(chunks), read_frames(tmp_path / "in.mp4"))
    assert len(chunks[0]) == min(first, 23) and all(len(chunk) == later for chunk in chunks[1:-1])


def test_images_bad_files_and_lengths(tmp_path):
    write_video(tmp_path / "in.png", clip(1), 8)
    assert [chunk.shape for chunk in read_chunks(tmp_path / "in.png", 5, 4)] == [(1, 32, 48, 3)]
    write_video(tmp_path / "in.mp4", clip(9), 8)
    (tmp_path / "cut.mp4").write_bytes((tmp_path / "in.mp4").read_bytes()[:-200])
    for name in ("none.mp4", "cut.mp4"):
        with pytest.raises(ClipError):
            list(read_chunks(tmp_path / name, 5, 4))
    with pytest.raises(ValueError, match="at least 1 frame"):
        list(read_chunks(tmp_path / "in.mp4", 0, 4))


def test_a_video_written_in_pieces_is_the_one_written_at_once(tmp_path):
    frames = torch.randint(0, 256, (11, 24, 32, 3), dtype=torch.uint8)
    write_video(tmp_path / "once.mp4", frames, 23.976)
    with clip_writer(tmp_path / "pieces.mp4", 24, 32, 23.976) as write:
        for piece in frames.split(4):
            write(piece)
    assert (tmp_path / "once.mp4").read_bytes() == (tmp_path / "pieces.mp4").read_bytes()
    with pytest.raises(RuntimeError, match="half-way"), clip_writer(tmp_path / "half.mp4", 24, 32, 8) as write:
        write(frames)
        raise RuntimeError("half-way")
    assert sorted(file.name for file in tmp_path.iterdir()) == ["once.mp4", "pieces.mp4"]


@pytest.mark.parametrize("delay", [0, 5])
def test_sound_is_copied_in_step_as_far_as_the_frames_last(tmp_path, delay):
    with_sound(tmp_path / "in.mkv", 40, 10, delay=delay)
    assert copies_audio(tmp_path / "in.mkv") == (True, "aac")
    with clip_writer(tmp_path / "out.mp4", 32, 48, 10, audio=tmp_path / "in.mkv") as write:
        for piece in clip(20).split(3):
            write(piece)
    assert probe(tmp_path / "out.mp4").frames == 20
    starts_the_decoder = 2 * 1024 / RATE  # before the first frame
    expected = [packet for packet in sound(tmp_path / "in.mkv") if -starts_the_decoder < packet[0] < 2]
    found = sound(tmp_path / "out.mp4")
    assert len(expected) > 10 and [data for _, data in found] == [data for _, data in expected]
    assert [time for time, _ in found] == pytest.approx([time for time, _ in expected], abs=0.002)


def test_what_an_mp4_does_not_hold_is_named(tmp_path):
    with_sound(tmp_path / "in.mkv", 10, 10, codec="pcm_s16le")
    assert copies_audio(tmp_path / "in.mkv") == (False, "pcm_s16le")
    write_video(tmp_path / "silent.mp4", clip(3), 8)
    write_video(tmp_path / "in.png", clip(1), 8)
    assert copies_audio(tmp_path / "silent.mp4") == copies_audio(tmp_path / "in.png") == (False, None)
    with pytest.raises(UserError):
        write_video(tmp_path / "in.txt", clip(1), 8)
