"""Made the golden files beside it, once: `python tests/golden/make.py NAME ...`, with no names all of them.

They pin what the system computes: the function of the models, the noise path and its solvers, and what is drawn for a
seed. Saved models, seeds and checkpoints of users mean what these files say. So do not run it again because a test
fails: that a test fails says that saved models would now give other results. It is run again only where a change of
results is wanted, and then the commit says which results change and why.

Everything is fp32 on a CPU; values are of order 1, and the tests allow for another processor's rounding.
"""

import json
import sys

from golden_cases import CASES, DIT, FOLDER, STATISTICS, VAE, draws, sampled, weights_of
from safetensors.torch import save_file

from latentvid.demo.text_encoder import build_encoder, build_tokenizer
from latentvid.diffusion.scheduler import LatentVideoScheduler
from latentvid.models.autoencoder import CausalVideoAutoencoder
from latentvid.models.transformer import VideoDiT
from latentvid.pipelines.latent_video import LatentVideoPipeline


def main(names: list[str]) -> None:
    if not names or "draws" in names:
        lines = [f'"{key}": {json.dumps(value)}' for key, value in draws().items()]
        (FOLDER / "draws.json").write_text("{\n" + ",\n".join(lines) + "\n}\n", encoding="utf-8")
    if not names or "pipeline" in names:
        make_pipeline()
    for name in CASES if not names else [name for name in names if name in CASES]:
        make_inputs, compute = CASES[name]
        given = make_inputs()
        tensors = {f"given.{k}": v for k, v in given.items()} | {f"found.{k}": v for k, v in compute(given).items()}
        save_file({k: v.contiguous() for k, v in tensors.items()}, FOLDER / f"{name}.safetensors")


def make_pipeline() -> None:
    """A saved pipeline of tiny parts, and what it samples. Old folders keep loading as this one does."""
    tokenizer = build_tokenizer(["a red 7 moves up", "a blue 3 turns to the left"], vocab_size=270)
    encoder = build_encoder(len(tokenizer), seed=0, width=16, layers=1)
    settings = DIT | {"text_width": 16, "mlp_ratio": 1.0}
    transformer, vae = VideoDiT(**settings), CausalVideoAutoencoder(**VAE, **STATISTICS, shortcuts=False)
    for model in (transformer, vae, encoder):
        weights = {name.removeprefix("weights."): value for name, value in weights_of(model).items()}
        if model is vae:
            weights["decoder.conv_out.weight"] /= 4  # most pixels lie within [-1,1]
        model.load_state_dict(weights)
    pipeline = LatentVideoPipeline(
        vae=vae,
        transformer=transformer,
        scheduler=LatentVideoScheduler(shift=2.0),
        text_encoder=encoder,
        tokenizer=tokenizer,
        frames=9,
        height=16,
        width=16,
        steps=4,
        guidance=2.0,
        given=("plain", "first"),
        trained=[{"frames": 9, "height": 16, "width": 16, "fps": 8.0, "count": 10}],
        given_shares={"plain": 1.0, "first": 1.0},
    )
    pipeline.save_pretrained(FOLDER / "pipeline")
    loaded = LatentVideoPipeline.from_pretrained(FOLDER / "pipeline")
    save_file({k: v.contiguous() for k, v in sampled(loaded).items()}, FOLDER / "sampled.safetensors")


if __name__ == "__main__":
    main(sys.argv[1:])
