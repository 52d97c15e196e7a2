"""What published models read beside tokens, noise levels and text, made for a pack's samples.

Axes: C latent channels, f h w of a latent, F H W frames, height and width in pixels, T tokens, N samples, Dp and D'
widths of further text encoders.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import fields, replace

import torch
from torch import Tensor

from ....data.cache.latents import LatentCaches
from ....data.cache.shards import Encoded, EncodedText
from ....data.transforms import from_uint8
from ....errors import UserError
from ....models.interchange import Vae
from ....models.open import Conditions, OpenBackbone
from ....models.open.conditioning import (
    condition_channels,
    drawn_deviation,
    encode_condition,
    noised_image,
    pixels_to_encode,
)
from ....models.open.image import ImageReader
from ....models.open.recipe import Recipe
from ....models.open.svd import NOISE
from ....packing import Packed, patch_size, patchify, spans
from ....rng import generator
from ....sequence import SequenceGroup, makers
from ....text import PackedText, TextReader
from ....transfer import to_device


class ConditionMaker:
    """By a model's recipe. The first frame is the image of a model that makes videos of images, and the last frame the
    second image of one that reads two; loader processes have a copy of this, so it holds no network."""

    def __init__(
        self, recipe: Recipe, model: OpenBackbone, text: TextReader, stride: int, reads_images: bool = False
    ) -> None:
        """stride: frames of a latent frame after the first. reads_images: by an image encoder."""
        self.pooled_width, self.second_width = text.pooled_dim, text.second_dim
        reading = text.text.reading
        self.tokens = reading.tokens if reading.pad == "zero" else 0  # of a prompt, with zeros up to there
        self.kind = recipe.image if model.channels else None  # given as channels
        self.of_images, self.stride = recipe.task == "i2v", stride
        self.reads_images = self.of_images and reads_images
        self.tells_motion, self.image_width = model.tells_motion, model.image_width
        self.of_two = self.reads_images and model.of_two_images
        self.no_pictures: Tensor | None = None  # states [0,I,Di]
        self.latent_channels, self.channels, self.patch = model.latent_channels, model.channels, model.patch
        scale = recipe.guidance_embedded if recipe.guidance_training is None else recipe.guidance_training
        self.guidance = scale if model.takes_guidance else None
        if model.channels and recipe.image is None:
            raise UserError(
                f"model.from: the transformer reads {model.channels} channels beside the latents, and how it is given "
                "them is not known: take another model"
            )

    def check_cache(self, caches: LatentCaches) -> None:
        """Raises UserError where entries do not tell what the model must be given."""
        folders = ", ".join(map(str, caches.sources))
        if self.reads_images:
            raise UserError(
                f"data.latents ({folders}): this model reads its image by an image encoder too, whose states a cache "
                "does not hold: train on the clips, data.manifest"
            )
        if self.kind == "cogvideox":
            raise UserError(
                f"data.latents ({folders}): this model sees its image with noise that differs each time, before the "
                "VAE, which a cache cannot hold: train on the clips, data.manifest"
            )
        if self.kind == "wan" and any(cache.load(0).image is None for cache in caches.caches):
            raise UserError(
                f"data.latents ({folders}): this model is given latents of the first frame alone, which the cache does "
                "not hold: encode again with vae/encode_latents.py --model"
            )

    def filled(self, states: Tensor) -> Tensor:
        """[S,Dt] as a cache has it -> as the model reads it: with the zeros that a cache leaves out."""
        missing = self.tokens - len(states)
        return torch.cat([states, states.new_zeros(missing, states.shape[1])]) if missing > 0 else states

    def of_entries(self, entries: Sequence[Encoded], words: Sequence[EncodedText]) -> Conditions | None:
        """By entries of a cache: the image's latents, or the first frame of the clip's. words: of each, or of no
        caption."""
        channels = None
        if self.kind is not None:
            images = [e.mean[:, :1] if e.image is None else e.image for e in entries]
            channels = self._tokens([self._channels(i, e.mean) for i, e in zip(images, entries, strict=True)])
        pooled = second = None
        lengths: tuple[int, ...] = ()
        if self.pooled_width:
            pooled = torch.stack([w.pooled for w in words]) if words else torch.empty(0, self.pooled_width)
        if self.second_width:
            seconds = [torch.empty(0, self.second_width) if w.second is None else w.second for w in words]
            second, lengths = torch.cat([torch.empty(0, self.second_width), *seconds]), tuple(map(len, seconds))
        image = None
        if self.reads_images:
            image = torch.stack([e.picture for e in entries]) if entries else self.no_pictures
        given = Conditions(channels=channels, image=image, pooled=pooled, second=second, second_lengths=lengths)
        return _or_none(given)

    def image_of(self, vae: Vae, video: Tensor, seed: int, number: int) -> Tensor | None:
        """For `Encoded.image` of a held-out clip [3,F,H,W] in [-1,1]. What Stable Video Diffusion sees has the noise of
        sampling, which is keyed by (seed, number)."""
        if self.kind is None or not self.of_images:
            return None
        image = video[:, 0]
        if self.kind == "svd":
            image = image + NOISE * torch.randn(image.shape, generator=generator(seed, number, "image-noise")).to(image)
        return encode_condition(self.kind, vae, self._pixels(image, video)).float().cpu()

    def pictures_of(self, reader: ImageReader | None, video: Tensor) -> Tensor | None:
        """For `Encoded.picture` of a held-out clip uint8 [F,H,W,3]."""
        if not self.reads_images:
            return None
        return states_of([self._shown(video)], len(self._ends), reader, torch.device("cpu"))[0].float()

    def hold_out(self, reader: ImageReader | None) -> None:
        """Before `of_entries` of held-out clips: a process may have none in a pack that it shares."""
        if self.reads_images:
            self.no_pictures = states_of([], len(self._ends), reader, torch.device("cpu")).float()

    def of_clips(
        self,
        vae: Vae,
        reader: ImageReader | None,
        videos: Sequence[Tensor],
        latents: Sequence[Tensor],
        numbers: Sequence[int],
        text: PackedText,
        seed: int,
        without: Sequence[bool] = (),
    ) -> Conditions | None:
        """videos: uint8 [F,H,W,3] with their latents [C,f,h,w]. Noise on images is keyed by the samples' numbers.
        without: which samples have no caption, of which Stable Video Diffusion, that reads none, is given no image."""
        channels = None
        if self.kind is not None:
            made = []
            for video, latent, number in zip(videos, latents, numbers, strict=True):
                encoded = self._encoded(vae, video, latent, number, seed) if self.of_images else None
                made.append(self._channels(encoded, latent))
            channels = self._tokens(made).to(text.states.device)
        image = None
        if self.reads_images:
            shown = list(map(self._shown, videos))
            image = states_of(shown, len(self._ends), reader, text.states.device)
        if self.kind == "svd":
            return self._of_svd(Conditions(channels=channels, image=image), latents, numbers, seed, without)
        given = Conditions(channels=channels, image=image, **of_text(text))
        return _or_none(given)

    def _of_svd(
        self, given: Conditions, latents: Sequence[Tensor], numbers: Sequence[int], seed: int, without: Sequence[bool]
    ) -> Conditions:
        """With the noise that each image was given, and zeros for the images that are left out."""
        keys = (generator(seed, number, "image-noise") for number in numbers)
        noise = torch.stack([drawn_deviation(key) for key in keys]) if numbers else torch.empty(0)
        there = to_device([not each for each in without], given.channels.device, torch.bool)
        counts = [z[0].numel() for z in latents]
        of_token = there.repeat_interleave(to_device(counts, there.device), output_size=sum(counts))
        channels, image = given.channels * of_token[:, None], given.image * there[:, None, None]
        return Conditions(channels=channels, image=image, image_noise=noise.to(given.channels))

    @property
    def _ends(self) -> tuple[int, ...]:
        return (0, -1) if self.of_two else (0,)

    def _shown(self, video: Tensor) -> list[Tensor]:
        """What of a clip [F,H,W,3] the image encoder reads."""
        return [video[end] for end in self._ends]

    def _encoded(self, vae: Vae, video: Tensor, latent: Tensor, number: int, seed: int) -> Tensor:
        video, noise = from_uint8(video), None  # [3,F,H,W]
        image = video[:, 0]
        if self.kind in ("cogvideox", "svd"):
            image = noised_image(image.cpu(), generator(seed, number, "image-noise")).to(image.device)
        if self.kind == "cogvideox":
            noise = torch.randn(len(latent), 1, *latent.shape[2:], generator=generator(seed, number, "image-posterior"))
        return encode_condition(self.kind, vae, self._pixels(image, video), noise)

    def _pixels(self, image: Tensor, video: Tensor) -> Tensor:
        """What the VAE makes the condition of, by the image [3,H,W] of a clip [3,F,H,W]."""
        last = video[:, -1] if self.of_two else None
        return pixels_to_encode(self.kind, image, video.shape[1], last)

    def _channels(self, encoded: Tensor | None, latent: Tensor) -> Tensor:
        encoded = encoded if self.of_images else None
        f, h, w = latent.shape[1:]
        grid = (-(-f // self.patch[0]) * self.patch[0], h, w)  # with the frames that patches put in front
        sizes = {"channels": self.latent_channels, "stride": self.stride}
        given = (0, (grid[0] - 1) * self.stride) if self.of_two else (0,)
        return condition_channels(self.kind, encoded, grid, given=given, **sizes).to(latent.device)

    def _tokens(self, channels: Sequence[Tensor]) -> Tensor:
        """[C',f,h,w] each -> [T,P']."""
        return patchify(channels, self.patch)[0] if channels else torch.empty(0, self.channels * patch_size(self.patch))

    def finished(self, given: Conditions | None, layout: Packed) -> Conditions | None:
        """With what depends on no sample."""
        if self.guidance is None:
            return given
        scale = torch.full((layout.segments,), float(self.guidance), device=layout.segment.device)
        return replace(given or Conditions(), guidance=scale)

    def blank(self, layout: Packed, text: PackedText | None) -> Conditions | None:
        """Of such sizes; text: of one prompt, where there are further text encoders."""
        size = self.channels * patch_size(self.patch)
        channels = None if self.kind is None else torch.zeros(layout.tokens, size)
        given = Conditions(channels=channels)
        if self.kind == "svd":
            given = replace(given, image=torch.zeros(layout.segments, 1, self.image_width))
        if text is not None:
            given = replace(given, **of_text(repeated(text, layout.segments)))
        return self.finished(_or_none(given), layout)


def _or_none(given: Conditions) -> Conditions | None:
    """None where nothing is given."""
    return given if any(getattr(given, f.name) is not None for f in fields(given) if f.default is None) else None


def states_of(pictures: Sequence[Sequence[Tensor]], each: int, reader: ImageReader, device: torch.device) -> Tensor:
    """So many pictures uint8 [H,W,3] of each sample -> [N,I,Di]."""
    if not pictures:  # of a process that makes none for its group: sizes that the others' have
        blank = torch.zeros(16, 16, 3, dtype=torch.uint8)
        return reader.read([blank] * each, device)[None][:0]
    return torch.stack([reader.read(of_sample, device) for of_sample in pictures])


def encoded_texts(text: TextReader, captions: Sequence[str], dtype: torch.dtype | None = None) -> list[EncodedText]:
    """Of each caption, in main memory, in the encoders' type where none is asked for; without what
    `ConditionMaker.filled` puts there again."""
    found = []
    for one in text.encode(captions).each():
        states = one.states
        if text.text.reading.pad == "zero":
            own = states.any(dim=1).nonzero()
            states = states[: int(own[-1]) + 1 if len(own) else 0]
        pooled = None if one.pooled is None else one.pooled[0]
        found.append(
            EncodedText(*(None if x is None else x.to("cpu", dtype or x.dtype) for x in (states, pooled, one.second)))
        )
    return found


def of_text(text: PackedText) -> dict[str, Tensor | tuple[int, ...]]:
    """What further text encoders made, as fields of `Conditions`."""
    found = {"pooled": text.pooled, "second": text.second}
    lengths = {} if text.second is None else {"second_lengths": tuple(text.second_lengths)}
    return {name: value.float() for name, value in found.items() if value is not None} | lengths


def repeated(text: PackedText, times: int) -> PackedText:
    """One prompt, several times."""
    again = {"states": text.states.repeat(times, 1), "lengths": list(text.lengths) * times}
    if text.pooled is not None:
        again["pooled"] = text.pooled.repeat(times, 1)
    if text.second is not None:
        again |= {"second": text.second.repeat(times, 1), "second_lengths": list(text.second_lengths) * times}
    return replace(text, **again)


def traded(sequence: SequenceGroup, whole: Sequence[int], given: Conditions) -> Conditions:
    """From the samples that each process of the group made, what this one's piece needs. whole: tokens of each sample
    of the pack."""
    maker = makers(whole, sequence.size)
    made = [n for n, rank in zip(whole, maker, strict=True) if rank == sequence.rank]
    here = spans(whole, sequence.size)[sequence.rank]
    some = next(x for x in (given.channels, given.pooled, given.second, given.image) if x is not None)
    blank = some.new_zeros(sum(made), 1)
    extra = [0] * len(whole)  # of each sample of the pack, image and second text
    if given.channels is not None:
        channels, _, _ = sequence.redistribute(whole, given.channels, blank[:0], [0] * len(made))
        given = replace(given, channels=channels)
    if given.pooled is not None:
        _, pooled, _ = sequence.redistribute(whole, blank, given.pooled, [1] * len(made))
        given = replace(given, pooled=pooled)
    if given.image is not None:
        states = given.image.shape[1]
        _, image, _ = sequence.redistribute(whole, blank, given.image.flatten(0, 1), [states] * len(made))
        given = replace(given, image=image.unflatten(0, (-1, states)))
        extra = [n + states for n in extra]
    if given.second is not None:
        _, second, words = sequence.redistribute(whole, blank, given.second, given.second_lengths)
        given = replace(given, second=second, second_lengths=tuple(words[here.first : here.last]))
        extra = [n + more for n, more in zip(extra, words, strict=True)]
    return replace(given, whole_extra=tuple(extra))
