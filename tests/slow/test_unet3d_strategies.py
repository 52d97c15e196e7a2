"""U-Nets in real launches: strategies train as one process does, or are refused at once; runs that are killed."""

from pathlib import Path

import pytest
from comparing import WEIGHTS, assert_measured_alike, losses
from launching import ROOT, family, finish, kill, launch, start, train_alike, wait_for
from safetensors.torch import load_file

from latentvid.config.parsing import save_config
from latentvid.training.checkpoint.checkpoint import CheckpointStore

TRAIN = ROOT / "train/train_dit.py"
SIZES = "kind: unet3d, block_out_channels: [8, 16], layers_per_block: 1, norm_num_groups: 4, attention_head_dim: 2"
LORA = ("adapter.kind=lora", "adapter.rank=4", "adapter.alpha=6", "adapter.dropout=0.1")
LORA_FILE = "lora/pytorch_lora_weights.safetensors"
STEPS = 10  # of a run that is killed
# of each the model (None: a new one), its options, and the file that is left
CASES = {
    "unet3d": (None, (), WEIGHTS),
    "recomputed": (None, ("train.gradient_checkpointing=true",), WEIGHTS),
    "modelscope": ("modelscope", LORA, LORA_FILE),
    "motion": (
        "stable_diffusion",
        ("model.motion={motion_num_attention_heads: 2, motion_max_seq_length: 8}",),
        "motion/diffusion_pytorch_model.safetensors",
    ),
    "svd": ("svd", (), "pipeline/unet/diffusion_pytorch_model.safetensors"),
    "svd-lora": ("svd", LORA, LORA_FILE),
}
CLIPS = ("data.max_frames=3", "data.max_area=256", "data.tokens_per_pack=300", "data.packs_per_step=2")
# SVD's cross-attention is over one state, so that it is 1 whatever these make: their gradients are rounding alone,
# which Adam makes steps of
IDLE = ("attn2.to_q", "attn2.to_k")


@pytest.fixture
def written(dit_config, published_config, repository, digits_data, tmp_path):
    """`written(run, case, "section.key=value", ...)`: the file of its configuration, of images and clips."""

    def write(run: Path, case: str, *overrides: str) -> Path:
        kind, more, _ = CASES[case]
        held_out = ("validation.every=3", f"validation.manifest={digits_data / 'train.jsonl'}")
        keys = (*more, "optim.schedule=constant", "optim.lr=1e-4", "optim.warmup=0", *held_out)
        keys += ("validation.samples=3", "validation.bins=2", *overrides)
        if kind is None:
            config = dit_config(run, f"model={{{SIZES}}}", *keys)
        else:
            config = published_config(run, repository(kind), *CLIPS, *keys)
        path = tmp_path / f"{run.name}.yaml"
        save_config(config, path)
        return path

    return write


def far(one: Path, other: Path, without: tuple[str, ...]) -> float:
    """The length of the difference of two files' tensors, over that of the other's."""
    a, b = load_file(one), load_file(other)
    assert a.keys() == b.keys()
    names = [name for name in a if not any(part in name for part in without)]
    gaps = sum(float((a[name].double() - b[name].double()).square().sum()) for name in names)
    return (gaps / sum(float(b[name].double().square().sum()) for name in names)) ** 0.5


@pytest.mark.distributed
@pytest.mark.parametrize("recipe", ["ddp", "zero2"])
def test_strategies_train_the_same(recipe, written, tmp_path):
    """Under two processes and by one: losses, measurements, and what is left."""
    train_alike(
        recipe,
        {name: lambda n, name=name: written(tmp_path / f"{name}-{n}", name, "train.steps=3") for name in CASES},
    )
    for name, (kind, _, file) in CASES.items():
        two, one = tmp_path / f"{name}-two", tmp_path / f"{name}-one"
        assert len(losses(one)) == 3 and losses(two) == pytest.approx(losses(one), rel=1e-5), name
        assert_measured_alike(two, one)
        assert far(two / file, one / file, IDLE if kind == "svd" else ()) < 1e-5, name


@pytest.mark.distributed
@pytest.mark.parametrize(
    ("recipe", "case", "said"), [("fsdp2", "unet3d", "FSDP2 gathers"), ("zero3", "modelscope", "ZeRO-3 gathers")]
)
def test_strategies_that_gather_are_refused_before_anything_is_read_or_made(recipe, case, said, written, tmp_path):
    """Neither the data, which are not there, nor clips of a prior."""
    prior = ("prior.prompts=[a 7]", "prior.clips=4", f"prior.dir={tmp_path / 'prior'}")
    absent = ("data.manifest=" if case == "modelscope" else "data.latents=") + str(tmp_path / "absent")
    config = written(tmp_path / "run", case, absent, *(prior if case == "modelscope" else ()))
    done = launch(recipe, 2, [TRAIN, config], check=False, timeout=900)
    assert done.returncode != 0 and said in done.stderr and "launch DDP, ZeRO-1 or ZeRO-2" in done.stderr
    assert not [path for path in tmp_path.rglob("*") if path.is_file() and path != config]


@pytest.mark.distributed
@pytest.mark.parametrize(("recipe", "cases"), [("ddp", ("unet3d", "motion", "svd")), ("zero2", ("unet3d",))])
def test_runs_that_are_killed_are_those_never_killed(recipe, cases, written, tmp_path):
    """Bit for bit, dropout included."""
    last = (f"train.steps={STEPS}", f"checkpoint.every={STEPS}")
    launch(recipe, 2, *([TRAIN, written(tmp_path / f"{name}-whole", name, *last)] for name in cases), timeout=1800)
    configs = {name: written(tmp_path / name, name, *last) for name in cases}
    for name, config in configs.items():
        store = CheckpointStore(tmp_path / name / "checkpoints")
        process = start(recipe, 2, [TRAIN, config, "--checkpoint.every=2"], log=tmp_path / "log")
        wait_for(lambda p=process, s=store: s.steps() or p.poll() is not None, 1800, "a checkpoint")
        kill(family(process.pid))
        finish(process, 30)
        assert 0 < store.steps()[-1] < STEPS, f"{name}: killed too late to prove anything"
    launch(recipe, 2, *([TRAIN, config] for config in configs.values()), timeout=1800)
    for name in cases:
        run, whole = tmp_path / name, tmp_path / f"{name}-whole"
        assert len(losses(whole)) == STEPS and losses(run) == losses(whole), name
        saved = list(whole.glob(f"checkpoints/step-{STEPS:08d}/*.safetensors"))
        assert saved
        for file in (CASES[name][2], *(path.relative_to(whole) for path in saved)):
            ours, theirs = load_file(run / file), load_file(whole / file)
            assert ours.keys() == theirs.keys() and all(ours[k].equal(theirs[k]) for k in ours), f"{name}: {file}"
