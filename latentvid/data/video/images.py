"""Images and animations by Pillow: upright, sRGB, opaque. Frames are uint8 arrays [H,W,3], RGB."""

import io
import os
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext

import numpy as np
from PIL import Image, ImageCms, ImageOps

from ...errors import ClipError, UserError
from ...places import name_of
from ..access.files import is_plain, opened
from ..storage import fault_of
from .hdr import HLG, PQ, SRGB, WIDE, as_sdr
from .kinds import IMAGE_ENDINGS, IMAGE_FORMATS
from .opening import check_size, truncated

_ANIMATED = frozenset({"WEBP", "PNG", "AVIF"})  # of other formats, further pictures are pages or views
_SIDEWAYS = 5  # EXIF orientations from here on exchange height and width
_SHORTEST_MS, _USUAL_MS = 10, 100  # browsers give a frame of at most so long the usual time


def is_image(path: str | os.PathLike) -> bool:
    """By its name: is it for Pillow, as an image or an animation?"""
    return os.path.splitext(name_of(path))[1].lower() in IMAGE_ENDINGS


@contextmanager
def opened_image(path: str | os.PathLike) -> Iterator[Image.Image]:
    """Pillow's image, of a size that can be held; Pillow's errors become ClipErrors; always closes."""
    warnings.simplefilter("ignore", Image.DecompressionBombWarning)  # `check_size` refuses, and by name
    try:
        # by its name where it has one of this machine's, which Pillow closes by itself
        with (
            nullcontext(path) if is_plain(path) else opened(path) as source,
            Image.open(source, formats=IMAGE_FORMATS) as image,
        ):
            check_size(path, image.height, image.width)
            yield image
    except Image.DecompressionBombError as error:
        raise ClipError(path, "too-large", f"is too large ({error}); scale it down") from error
    except (OSError, SyntaxError, ValueError, EOFError, ImageCms.PyCMSError) as error:  # what Pillow's readers raise
        if isinstance(error, UserError):
            raise
        if "truncated" in str(error).lower():
            raise truncated(path) from error
        why = "HEIC has no free reader here" if os.fspath(path).lower().endswith((".heic", ".heif")) else error
        content = ClipError(path, "unreadable", f"cannot be read as an image ({why}); save it again as PNG")
        raise fault_of(path, error, content) from error


def upright_size(image: Image.Image) -> tuple[int, int]:
    """(height, width)"""
    sideways = image.getexif().get(0x0112, 1) >= _SIDEWAYS
    return (image.width, image.height) if sideways else (image.height, image.width)


def read_image(path: str | os.PathLike) -> np.ndarray:
    """The first picture -> uint8 [H,W,3]."""
    with opened_image(path) as image:
        return _pixels(path, image)


def animation_times(path: str | os.PathLike) -> list[int] | None:
    """When each frame of an animated WebP, PNG or AVIF begins, in ms, and when the last one ends; None for an image.

    All of it is decoded, as only the frames' own say counts."""
    with opened_image(path) as image:
        if image.format not in _ANIMATED or getattr(image, "n_frames", 1) < 2:
            return None
        times = [0]
        for _ in _shown(image):
            lasts = image.info.get("duration") or 0
            times.append(times[-1] + max(1, round(lasts if lasts > _SHORTEST_MS else _USUAL_MS)))
    return times if len(times) > 2 else None


def animation_frames(path: str | os.PathLike) -> Iterator[np.ndarray]:
    """All frames of an animation, in order."""
    with opened_image(path) as image:
        for _ in _shown(image):
            yield _pixels(path, image)


def _shown(image: Image.Image) -> Iterator[None]:
    """Goes through the frames; a PNG's picture for readers that know no animations is not one."""
    for n in range(int(bool(getattr(image, "default_image", False))), image.n_frames):
        image.seek(n)
        image.load()
        yield


def _pixels(path: str | os.PathLike, image: Image.Image) -> np.ndarray:
    """-> uint8 [H,W,3]: upright, in sRGB, over black."""
    transfer, primaries = _coded_as(path, image)
    if transfer in (PQ, HLG):
        raise ClipError(path, "hdr", "is a high dynamic range image; save it as SDR (sRGB)")
    upright = ImageOps.exif_transpose(image)
    if upright.mode.startswith("I;16"):  # convert("RGB") would clip 16-bit grey instead of scaling it
        grey = np.asarray(upright).astype(np.uint32)
        upright = Image.fromarray(((grey * 255 + 32767) // 65535).astype(np.uint8))
    elif upright.mode in ("I", "F"):
        raise ClipError(path, "unreadable", f"has pixels of mode {upright.mode}; save it with 8 or 16 bits")
    alpha = None
    if upright.has_transparency_data:
        upright = upright.convert("RGBA")
        alpha = np.asarray(upright)[..., 3:]
        upright = upright.convert("RGB")
    pixels = np.array(_in_srgb(upright, image.info.get("icc_profile")))
    if primaries in WIDE and not image.info.get("icc_profile"):
        pixels = as_sdr(pixels.astype(np.uint16) * 257, SRGB, primaries)
    return pixels if alpha is None else over_black(pixels, alpha)


def over_black(pixels: np.ndarray, alpha: np.ndarray) -> np.ndarray:
    """uint8 [..., n], uint8 [..., 1 or n] (255: opaque) -> uint8 [..., n]"""
    return ((pixels.astype(np.uint16) * alpha + 127) // 255).astype(np.uint8)


def _in_srgb(image: Image.Image, profile: bytes | None) -> Image.Image:
    """RGB by its ICC profile, where it has one that is not sRGB itself and is for such pixels."""
    if profile:
        source = ImageCms.ImageCmsProfile(io.BytesIO(profile))
        space = source.profile.xcolor_space.strip()
        image = image if image.mode in ("RGB", "L", "CMYK", "LAB") else image.convert("RGB")
        fits = {"RGB": "RGB", "GRAY": "L", "CMYK": "CMYK", "Lab": "LAB"}.get(space) == image.mode
        if fits and "srgb" not in (source.profile.profile_description or "").lower():
            intent = ImageCms.Intent.RELATIVE_COLORIMETRIC
            return ImageCms.profileToProfile(image, source, ImageCms.createProfile("sRGB"), intent, outputMode="RGB")
    return image.convert("RGB")


def _coded_as(path: str | os.PathLike, image: Image.Image) -> tuple[int, int]:
    """(transfer curve, primaries) that a PNG's cICP chunk, an AVIF's nclx box or an ICC profile state (H.273); 0."""
    profile = image.info.get("icc_profile") or b""
    if (at := profile.rfind(b"cicp")) >= 0 and len(profile) >= at + 10:
        return profile[at + 9], profile[at + 8]
    if image.format not in ("PNG", "AVIF"):
        return 0, 0
    with opened(path) as file:
        head = file.read(1 << 16)
    if image.format == "PNG" and 0 <= (at := head.find(b"cICP")) < len(head) - 6:
        return head[at + 5], head[at + 4]
    if image.format == "AVIF" and 0 <= (at := head.find(b"colrnclx")) < len(head) - 12:
        return head[at + 11], head[at + 9]
    return 0, 0
