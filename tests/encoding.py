"""Files of frames, as tests of what they show want them."""

from fractions import Fraction

import av
import numpy as np


def encode(path, frames, codec="libx264", pixel_format="yuv420p", rate=25, options=None, times=None, sar=None, **tags):
    """frames: uint8 [H,W,3] arrays, or VideoFrames."""
    with av.open(str(path), "w") as output:
        stream = output.add_stream(codec, rate=rate, options=options or {})
        for index, pixels in enumerate(frames):
            frame = pixels if isinstance(pixels, av.VideoFrame) else av.VideoFrame.from_ndarray(pixels, format="rgb24")
            if index == 0:
                stream.height, stream.width, stream.pix_fmt = frame.height, frame.width, pixel_format
                if sar:
                    stream.codec_context.sample_aspect_ratio = sar
                for name, value in tags.items():
                    setattr(stream.codec_context, name, value)
            frame = frame if frame.format.name == pixel_format else frame.reformat(format=pixel_format)
            frame.pts, frame.time_base = index if times is None else times[index], Fraction(1, rate)
            output.mux(stream.encode(frame))
        output.mux(stream.encode(None))


def flat(level: int, height: int = 32, width: int = 48) -> np.ndarray:
    return np.full((height, width, 3), level, np.uint8)
