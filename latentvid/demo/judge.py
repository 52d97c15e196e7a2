"""Judge of digit clips: reads digit, direction, colour and verb from pixels.

Digits by a small CNN trained on real digits, motion from the path of the centre of mass; weights lie beside this file.
Axis letters: F H W frames, height, width; B glyphs in a training batch.
"""

if __name__ == "__main__":  # before torch is imported: --help and wrong options are answered at once
    from ..commands import judge

    judge()
    raise SystemExit

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as nnf
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from ..files import follow_umask
from .digits import COLOURS, DIRECTIONS, GLYPH, Label, glyphs, paint

WEIGHTS = Path(__file__).with_name("judge.safetensors")
CROP = 20  # side of the window that the CNN reads, pixels: a glyph and its centre's offset
FAINT = 24.0  # of 255: a frame nowhere this much above its background shows nothing
STILL = 1.5  # pixels in half a clip: less is no motion
TURN = 1.2  # pixels back from the farthest point, along the first motion: a bounce


@dataclass(frozen=True)
class Verdict:
    """What the judge saw. Where there is nothing: digit -1, direction "none", colour "none", path NaN.

    `path` [F,2]: centre of mass (y, x) in pixels. `chances` [classes]: the probability of each class, mean over all
    frames; those that show nothing have none.
    """

    digit: int
    frame_digits: tuple[int, ...]
    direction: str
    colour: str
    bounced: bool
    path: Tensor
    chances: Tensor


@dataclass(frozen=True)
class Sight:
    """Frames after background suppression.

    `ink` [F,H,W] in 0..1; `colour` [F,H,W,3] above background, 0..255; `centre` [F,2]; `visible` [F] bool.
    """

    ink: Tensor
    colour: Tensor
    centre: Tensor
    visible: Tensor


class DigitNet(nn.Module):
    """Crops [B,20,20] in 0..1 -> logits [B,classes]: the ten digits, and what else it was trained to tell from them."""

    def __init__(self, classes: int = 10) -> None:
        super().__init__()
        self.convs = nn.ModuleList(nn.Conv2d(i, o, 3, padding=1) for i, o in ((1, 16), (16, 32), (32, 64)))
        self.norms = nn.ModuleList(nn.BatchNorm2d(o) for o in (16, 32, 64))
        self.head = nn.Linear(64 * 5 * 5, classes)

    def forward(self, crops: Tensor) -> Tensor:
        x = nnf.relu(self.norms[0](self.convs[0](crops[:, None])))  # [B,16,20,20]
        x = nnf.relu(self.norms[1](self.convs[1](nnf.max_pool2d(x, 2))))  # [B,32,10,10]
        x = nnf.relu(self.norms[2](self.convs[2](nnf.max_pool2d(x, 2))))  # [B,64,5,5]
        return self.head(nnf.dropout(x.flatten(1), 0.3, self.training))


def look(frames: Tensor) -> Sight:
    """Find the digit in frames [F,H,W,3], float 0..255: ink, colour and centre of mass."""
    count, height, width, _ = frames.shape
    background = frames.flatten(1, 2).median(dim=1).values[:, None, None]  # [F,1,1,3]
    colour = (frames - background).clamp_min(0)
    grey = colour.mean(dim=-1)  # [F,H,W]
    peak = torch.quantile(grey.flatten(1), 0.99, dim=1)[:, None, None]  # not the maximum: a stray pixel is no digit
    ink = (grey / peak.clamp_min(1e-6)).clamp(0, 1)
    weight = (ink - 0.2).clamp_min(0)
    rows, columns = torch.arange(height).float()[:, None], torch.arange(width).float()[None, :]
    window = torch.ones_like(weight)
    centre = torch.zeros(count, 2)
    for _ in range(3):  # once over all, then near the centre alone, so that far specks do not pull
        near = weight * window
        mass = near.sum(dim=(1, 2)).clamp_min(1e-6)
        centre = torch.stack([(near * rows).sum(dim=(1, 2)), (near * columns).sum(dim=(1, 2))], dim=1) / mass[:, None]
        y, x = centre[:, 0, None, None], centre[:, 1, None, None]
        window = (((rows - y).abs() < 11) & ((columns - x).abs() < 11)).float()
    return Sight(ink * window, colour, centre, peak.flatten() > FAINT)


def crop(ink: Tensor, centre: Tensor, shape: Tensor | None = None) -> Tensor:
    """Windows [F,20,20] of `ink` [F,H,W] around `centre` [F,2]; `shape` [F,2,2] turns and scales the window."""
    offset = torch.arange(CROP).float() - (CROP - 1) / 2
    grid = torch.stack(torch.meshgrid(offset, offset, indexing="ij"), dim=-1).expand(len(ink), -1, -1, -1)
    if shape is not None:
        grid = torch.einsum("bij,bhwj->bhwi", shape, grid)
    pixel = grid + centre[:, None, None]  # (y, x)
    size = torch.tensor(ink.shape[1:]).float()
    place = (2 * pixel + 1) / size - 1
    return nnf.grid_sample(ink[:, None], place.flip(-1), align_corners=False)[:, 0]


def direction_of(path: Tensor) -> str:
    """The one of the eight DIRECTIONS nearest to the motion of the first half of `path` [F,2] (NaN: not seen)."""
    half = (len(path) - 1) // 2
    seen = torch.nonzero(path[: half + 1].isfinite().all(dim=1)).flatten()
    if len(seen) < 2:
        return "none"
    time = seen.float() - seen.float().mean()
    motion = half * (time[:, None] * path[seen]).sum(dim=0) / (time**2).sum()  # least squares: one bad frame is no turn
    if motion.norm() < STILL:
        return "none"
    ways = nnf.normalize(torch.tensor(list(DIRECTIONS.values())).float(), dim=1)
    return tuple(DIRECTIONS)[int((ways @ motion).argmax())]


def bounced(path: Tensor, direction: str) -> bool:
    """Whether `path` [F,2] comes back on an axis on which it first moved."""
    if direction == "none":
        return False
    path = path[path.isfinite().all(dim=1)]
    for axis, sense in enumerate(DIRECTIONS[direction]):
        way = sense * path[:, axis]
        if sense and float(way.max() - way[-1]) > TURN:
            return True
    return False


def colour_of(sight: Sight) -> str:
    """The one of COLOURS whose share of red, green and blue is nearest to that of the ink, over all frames."""
    weight = sight.ink * sight.visible[:, None, None]
    total = (weight[..., None] * sight.colour).sum(dim=(0, 1, 2))  # [3]
    known = torch.tensor(list(COLOURS.values())).float()
    distance = (known / known.sum(dim=1, keepdim=True) - total / total.sum()).norm(dim=1)
    return tuple(COLOURS)[int(distance.argmin())]


class Judge:
    """Reads clips; `Judge.load()` gives the shipped one."""

    def __init__(self, net: DigitNet) -> None:
        self.net = net.eval()
        self.classes = net.head.out_features

    @classmethod
    def load(cls, path: Path = WEIGHTS) -> "Judge":
        """Raises FileNotFoundError where `path` is missing."""
        if not Path(path).is_file():
            raise FileNotFoundError(f"{path}: no judge weights; make them: python -m latentvid.demo.judge --train")
        weights = load_file(path)
        net = DigitNet(len(weights["head.bias"]))
        net.load_state_dict(weights)
        return cls(net)

    @torch.inference_mode()
    def __call__(self, frames: Tensor) -> Verdict:
        """Verdict on a clip [F,H,W,3], values 0..255 (uint8 or float). Raises ValueError on another shape."""
        if frames.ndim != 4 or frames.shape[-1] != 3 or 0 in frames.shape:
            raise ValueError(f"clip of shape {tuple(frames.shape)}: give frames [F,H,W,3] with values 0..255")
        frames = torch.nan_to_num(frames.detach().cpu().float(), 0.0, 255.0, 0.0).clamp(0, 255)
        sight = look(frames)
        path = torch.where(sight.visible[:, None], sight.centre, torch.nan)
        if not sight.visible.any():
            return Verdict(-1, (-1,) * len(frames), "none", "none", False, path, torch.zeros(self.classes))
        logp = self.net(crop(sight.ink, sight.centre)).log_softmax(dim=1)  # [F,10]
        reads = torch.where(sight.visible, logp.argmax(dim=1), -1)
        direction = direction_of(path)
        return Verdict(
            digit=int(logp[sight.visible].mean(dim=0).argmax()),
            frame_digits=tuple(reads.tolist()),
            direction=direction,
            colour=colour_of(sight),
            bounced=bounced(path, direction),
            path=path,
            chances=(logp.exp() * sight.visible[:, None]).mean(dim=0),
        )


def score(clips: Sequence[Tensor], labels: Sequence[Label], judge: Judge | None = None) -> dict[str, float]:
    """Shares (0..1) of clips [F,H,W,3] that show what their label says, and their `count`.

    digit, direction, colour, verb: that alone is right. both: digit and direction. strict: direction, and at least
    75 % of the frames read as the digit.
    """
    if len(clips) != len(labels) or not clips:
        raise ValueError(f"{len(clips)} clips and {len(labels)} labels: give as many of each, and at least one")
    judge = judge or Judge.load()
    right: Counter[str] = Counter(dict.fromkeys(("digit", "direction", "both", "strict", "colour", "verb"), 0))
    for clip, label in zip(clips, labels, strict=True):
        verdict = judge(clip)
        digit = verdict.digit == label.digit
        direction = verdict.direction == (label.direction or "none")
        steady = verdict.frame_digits.count(label.digit) >= 0.75 * len(verdict.frame_digits)
        right["digit"] += digit
        right["direction"] += direction
        right["both"] += digit and direction
        right["strict"] += direction and steady
        right["colour"] += verdict.colour == label.colour
        right["verb"] += verdict.bounced == (label.verb == "bounces")
    return {name: hits / len(clips) for name, hits in right.items()} | {"count": len(clips)}


def degraded(glyph: Tensor, generator: torch.Generator) -> Tensor:
    """Glyphs [B,16,16] as the judge meets them: painted at random places in random colours, a little blurred and
    noisy, found and cropped [B,20,20] a little off, turned and scaled."""

    def uniform(low: float, high: float, *shape: int) -> Tensor:
        return low + (high - low) * torch.rand(len(glyph), *shape, generator=generator)

    side = 2 * GLYPH
    grey = paint(glyph, uniform(-1, GLYPH + 1, 2), (side, side))
    sigma = uniform(0.05, 0.9)[:, None]
    kernel = torch.softmax(-(torch.arange(-2, 3).float() ** 2) / (2 * sigma**2), dim=1)  # [B,5]
    grey = nnf.conv2d(grey[None], kernel[:, None, :, None], padding=(2, 0), groups=len(glyph))
    grey = nnf.conv2d(grey, kernel[:, None, None, :], padding=(0, 2), groups=len(glyph))[0]
    palette = torch.tensor(list(COLOURS.values())).float()
    colour = palette[torch.randint(len(palette), (len(glyph),), generator=generator)][:, None, None]
    noise = uniform(0, 14, 1, 1, 1) * torch.randn(*grey.shape, 3, generator=generator)
    sight = look((grey[..., None] * colour + noise).clamp(0, 255))
    angle, scale = uniform(-0.15, 0.15), uniform(0.92, 1.08, 2)
    turn = torch.stack([angle.cos(), -angle.sin(), angle.sin(), angle.cos()], dim=1).reshape(-1, 2, 2)
    return crop(sight.ink, sight.centre + uniform(-0.7, 0.7, 2), turn * scale[:, None])


Images = tuple[Tensor, Tensor]  # glyphs [N,16,16] and their classes [N]


def train(
    path: Path = WEIGHTS,
    *,
    steps: int = 600,
    batch: int = 192,
    seed: int = 0,
    more: tuple[Images, Images] | None = None,
) -> float:
    """Train on the training digit images alone, write `path`, return the accuracy on held-out images (0..1).

    more: glyphs that are no digits, of classes from 10 on, to train on and to hold out.
    """
    trained, held_out = glyphs(heldout=False), glyphs(heldout=True)
    if more is not None:
        trained, held_out = (
            tuple(map(torch.cat, zip(a, b, strict=True))) for a, b in ((trained, more[0]), (held_out, more[1]))
        )
    generator = torch.Generator().manual_seed(seed)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)  # initial weights and dropout
        net = DigitNet(1 + int(trained[1].max())).train()
        optimiser = torch.optim.AdamW(net.parameters(), weight_decay=0.02)
        schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, 4e-3, total_steps=steps)
        images, digits = trained
        for _ in range(steps):
            pick = torch.randint(len(images), (batch,), generator=generator)
            logits = net(degraded(images[pick], generator))
            loss = nnf.cross_entropy(logits, digits[pick], label_smoothing=0.05)
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
            schedule.step()
    net.eval()
    save_file(net.state_dict(), path)
    follow_umask(path)
    images, digits = (x.repeat_interleave(4, dim=0) for x in held_out)
    with torch.inference_mode():
        return float((net(degraded(images, generator)).argmax(dim=1) == digits).float().mean())
