"""What a dry run says fits on GPUs of common sizes."""

import importlib
from pathlib import Path

import pytest
import torch

from latentvid.config.curriculum import curriculum
from latentvid.config.parsing import load_config
from latentvid.config.schema import DitConfig
from latentvid.training.dryrun.cards import CARDS, Pack, cards_table, fit, sparing
from latentvid.training.dryrun.estimate import dit_pass_bytes
from latentvid.training.dryrun.memory import StateBytes, size
from latentvid.training.dryrun.preflight import preflight
from latentvid.training.launch import make_plan
from latentvid.training.stages.dit.task import DitTask

GIB = 2**30
PACK = Pack(tokens=8192, sample=1000, packs=4)
ROWS = [  # most, and most recomputing; fixed are 8 GiB on one device and 2 on each of eight
    ("single", 1, StateBytes(2 * GIB, 2 * GIB, 2 * GIB, 2 * GIB), [48 * GIB, 24 * GIB]),
    ("DDP", 8, StateBytes(2 * GIB, 2 * GIB, 2 * GIB, 2 * GIB), [48 * GIB, 25 * GIB]),
    ("FSDP2", 8, StateBytes(GIB, GIB / 2, GIB / 4, GIB / 4), [42 * GIB, 18 * GIB]),
]
RECOMPUTE = "--train.gradient_checkpointing=true"


@pytest.mark.parametrize(
    ("room", "strategy", "settings", "most"),
    [
        (50, "single", (), 48),
        (30, "single", (RECOMPUTE,), 24),
        # 0.9 x 8192 x (16 - 8) / (24 - 8) = 3686 tokens, by whole 256: 3584; 4 x 8192 tokens are 10 such packs
        (16, "single", (RECOMPUTE, "--data.tokens_per_pack=3584", "--data.packs_per_step=10"), 8 + 16 * 3584 / 8192),
        # on one device not a sample fits; on eight 0.9 x 8192 x (8 - 2) / (18 - 2) = 2764, 2560; 13 packs, 16 for eight
        (8, "FSDP2", (RECOMPUTE, "--data.tokens_per_pack=2560", "--data.packs_per_step=16"), 2 + 16 * 2560 / 8192),
    ],
)
def test_the_fewest_processes_and_changes_that_fit(room, strategy, settings, most):
    found = fit(ROWS, 0.0, PACK, False, room * GIB)
    assert (found.strategy, found.settings) == (strategy, settings) and found.most == pytest.approx(most * GIB)


def test_frozen_networks_take_room_and_what_recomputes_is_not_told_to():
    assert fit(ROWS, 10 * GIB, PACK, False, 50 * GIB).settings == (RECOMPUTE,)
    assert fit(ROWS, 0.0, PACK, True, 50 * GIB).settings == ()
    assert fit(ROWS, 0.0, PACK, False, GIB) is None


def test_settings_that_hold_less_come_when_nothing_else_fits():
    """Only where no process holds a part alone, and the one that changes least first."""
    sparing = [("--adapter.base=int8", GIB, False), ("--adapter.base=nf4", 4 * GIB, False)]
    assert fit(ROWS[:1], 0.0, PACK, False, 24 * GIB, sparing).settings == (RECOMPUTE,)
    found = fit(ROWS[:1], 0.0, PACK, False, 9.5 * GIB, sparing)  # 0.9 x 8192 x (9.5 - 7) / 16 = 1152, 1024 tokens
    assert found.settings == (sparing[0][0], RECOMPUTE, "--data.tokens_per_pack=1024", "--data.packs_per_step=32")
    assert found.most == pytest.approx((7 + 16 * 1024 / 8192) * GIB)
    assert fit(ROWS[:1], 0.0, PACK, False, 7 * GIB, sparing).settings[0] == sparing[1][0]
    assert fit(ROWS[2:], 0.0, PACK, False, 3 * GIB, sparing) is None
    swapped = [("--train.swap_blocks=8", 4 * GIB, True)]  # never without recomputing, were there room for it
    assert fit(ROWS[:1], 0.0, PACK, False, 45 * GIB, swapped).settings == (RECOMPUTE,)
    assert fit(ROWS[:1], 0.0, PACK, False, 7 * GIB, swapped).settings[:2] == (swapped[0][0], RECOMPUTE)
    assert fit(ROWS[:1], 0.0, PACK, True, 7 * GIB, swapped).settings[1].startswith("--data.tokens_per_pack")
    assert "optim.name=adamw8bit" in cards_table(
        ROWS[:1], 2 * GIB, PACK, False, [("--optim.name=adamw8bit", 2 * GIB, False)]
    )


def test_the_table_has_a_line_a_card_with_a_command():
    lines = cards_table(ROWS, 0.0, PACK, False).splitlines()
    assert [line.split()[0] for line in lines[2:]] == [str(card) for card in CARDS]
    assert "tokens_per_pack=1024" in lines[2] and lines[5].endswith(RECOMPUTE) and lines[6].endswith("nothing")
    alone = cards_table(ROWS[2:], 0.0, PACK, False)
    assert "accelerate launch --config_file configs/accelerate/fsdp2.yaml --num_processes 8" in alone
    assert "adapter.kind=lora" in cards_table(ROWS, 200 * GIB, PACK, False)


def test_what_spares_memory_is_of_what_is_trained(dit_config, tiny_pipeline, tmp_path):
    task = DitTask(dit_config(tmp_path), torch.device("cpu"))
    assert [name for name, _, _ in sparing(task.config, task)] == ["--optim.name=adamw8bit"]
    lora = (f"init={tiny_pipeline}", f"model.mlp_ratio={8 / 3}", "adapter.kind=lora")
    tuned = DitTask(dit_config(tmp_path, *lora), torch.device("cpu"))
    (int8, less, _), (nf4, least, _) = sparing(tuned.config, tuned)  # two blocks are on the device anyway
    assert (int8, nf4) == ("--adapter.base=int8", "--adapter.base=nf4") and 0 < less < least
    for kind, spared in (("int8", less), ("nf4", least)):
        coded = DitTask(dit_config(tmp_path, *lora, f"adapter.base={kind}"), torch.device("cpu"))
        assert sum(map(size, tuned.blocks)) - sum(map(size, coded.blocks)) == pytest.approx(spared, abs=2 * 2048 + 1)
        assert sparing(coded.config, coded) == []


def test_a_dry_run_has_it(dit_config, tmp_path):
    config = dit_config(tmp_path)
    task = DitTask(config, torch.device("cpu"))
    text = preflight(config, task, make_plan(config, task), world=1, device=torch.device("cpu")).text
    assert "what fits on one GPU of a size" in text and "141 GB" in text and "beside what is set" in text


def test_the_recipe_for_a_node_fills_its_gpus():
    recipes = Path(__file__).parents[2] / "configs/dit"
    base, node = (load_config(DitConfig, recipes / f"{name}.yaml", []) for name in ("base", "node"))
    model = node.model
    assert model == base.model and model["heads"] % 8 == 0 and model["width"] // model["heads"] % 8 == 0
    assert node.train.compile and node.validation.every and node.data.packs_per_step % 8 == 0
    arguments = {**model, "latent_channels": 16, "text_width": 768}
    clips = node.data.tokens_per_pack // 1280  # of 17 frames of 256 x 256: five latent frames
    taken = dit_pass_bytes(arguments, [(5, 16, 16)] * clips, [24] * clips, False).staying
    assert 0.25 * 80 * GIB < taken < 0.9 * 80 * GIB
    stages = curriculum(node)
    assert [(s.name, s.config.data.image_share, s.config.timesteps.shift) for s in stages] == [
        ("images", 1.0, 1.0),
        ("video", 0.2, 2.0),
    ]
    assert all(stage.config.timesteps.shift == stage.config.scheduler.get("shift", 1.0) for stage in stages)


@pytest.fixture
def recipes(monkeypatch):
    """benchmarks/recipes.py."""
    monkeypatch.syspath_prepend(Path(__file__).parents[2] / "benchmarks")
    return importlib.import_module("recipes")


@pytest.mark.parametrize("name", ["1b", "5b", "14b"])
def test_recipes_have_stages_and_widths_that_gpus_share(name, recipes):
    config = recipes.config_of(name)
    assert config.model["heads"] % 8 == 0 and config.model["width"] // config.model["heads"] % 8 == 0
    assert config.train.compile and config.validation.every and config.data.packs_per_step % 8 == 0
    assert config.optim.lr == pytest.approx(2e-4 * 768 / config.model["width"])
    stages = curriculum(config)  # pictures, small clips, large ones; the packs of all are of as many tokens
    assert [stage.name for stage in stages] == ["images", "video_256", "video_512"]
    assert [stage.config.data.max_area for stage in stages] == [256**2, 256**2, 512**2]
    assert [str(stage.config.data.latents)[-3:] for stage in stages] == ["256", "256", "512"]
    assert [stage.config.data.image_share for stage in stages] == [1.0, 0.2, 0.2]
    assert all(stage.config.timesteps.shift == stage.config.scheduler.get("shift", 1.0) for stage in stages)
    assert stages[-1].config.given.first > 0 and stages[-1].config.optim.lr == config.optim.lr / 2


def test_the_tightest_recipe_fits_its_gpus_as_the_page_says(recipes):
    name, root = "14b", Path(__file__).parents[2]
    config, strategy = recipes.config_of(name), recipes.RECIPES[name]
    parameters, found = recipes.taken(config, strategy, efficiency=0.4)
    rows = [line for line in (root / "docs/scaling.md").read_text().splitlines() if line.startswith(f"| `{name}` |")]
    assert [each.gpus for each in found] == [8, 128] and len(rows) == 2
    for row, each in zip(rows, found, strict=True):
        said = [cell.strip() for cell in row.strip("|").split("|")]
        assert each.memory < recipes.USABLE * recipes.CARD
        assert said[1] == f"{parameters / 1e9:.2f}B" and int(said[3]) == each.gpus and said[4] == strategy
        assert float(said[6]) == pytest.approx(each.memory / 1e9, rel=0.1)
        assert float(said[8].replace(",", "")) == pytest.approx(each.rate, rel=0.1)
