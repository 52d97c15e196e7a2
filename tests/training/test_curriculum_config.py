"""`stages:` as they are written and overridden: what is wrong is named by stage and key."""

import pytest
from launching import ROOT

from latentvid.config.curriculum import curriculum, stage_at
from latentvid.config.parsing import load_config, save_config
from latentvid.config.schema import DitConfig
from latentvid.config.yaml_files import ConfigError
from latentvid.errors import UserError
from latentvid.training.stages.dit.task import DitTask
from latentvid.training.trainer import train

pytestmark = pytest.mark.usefixtures("fresh_accelerate")


WRONG = {
    "stages=[{name: a, data: {max_are: 3}}]": "stages: in a: unknown key data.max_are",
    "stages=[{data: {max_area: -3}}]": "stages: in stage1: data.max_area=-3",
    "stages=[{name: a, train.steps: 3}]": "stages: in a: unknown key train.steps (value 3): in a file write steps",
    "stages=[{optim: {lr: fast}}]": "stages: in stage1: optim.lr='fast'",
    "stages=[{name: a}, {name: b, model: {width: 64}}]": "stages: in b: model.width is the same in all stages",
    "stages=[{name: a}, {name: b, run: {seed: 1}}]": "stages: in b: run.seed is the same in all stages",
    "stages=[{name: a}, {name: b, scheduler: {target: x}}]": "stages: in b: scheduler.target is the same",
    "stages=[{name: a}, {name: b, optim: {name: muon}}]": "stages: in b: optim.name is the same",
    "stages=[{name: a}, {name: a}]": "both called a",
    "stages=[{name: a-1}]": "entry 1",
    "stages=[{stages: []}]": "stages cannot lie within each other",
    "stages=[{data: {manifest: a.jsonl}}]": "stages: in stage1: data: manifest is set, but so is latents",
    "stages=3": "stages=3",
    "stages=[3]": "stages",
}


@pytest.mark.parametrize(("text", "said"), WRONG.items())
def test_what_is_wrong_in_a_stage_is_named_by_stage_and_key(text, said, dit_config, tmp_path):
    with pytest.raises(ConfigError) as error:
        dit_config(tmp_path, text)
    assert said in str(error.value)


def test_the_command_line_reaches_into_stages_and_is_never_lost(dit_config, tmp_path):
    path = tmp_path / "c.yaml"
    save_config(dit_config(tmp_path, "stages=[{name: a, train: {steps: 3}}, {data: {max_area: 100}}]"), path)
    config = load_config(DitConfig, path, ["--stages.a.optim.lr=5e-4", "--stages.stage2.data.max_area=null"])
    first, second = curriculum(config)
    assert (first.config.optim.lr, second.config.optim.lr, second.config.data.max_area) == (5e-4, 3e-3, None)
    assert [(s.begin, s.end) for s in (first, second)] == [(0, 3), (3, 9)]
    assert [stage_at([first, second], step).number for step in (0, 3, 4, 9, 99)] == [1, 1, 2, 2, 2]
    assert load_config(DitConfig, path, ["--optim.warmup=7"]).optim.warmup == 7
    whole = load_config(DitConfig, path, ["--stages=[{name: b}, {name: c}]", "--stages.c.optim.lr=2e-4"])
    assert [stage.config.optim.lr for stage in curriculum(whole)] == [3e-3, 2e-4]
    for override, said in {
        "--train.steps=9": "in the stage a, which sets train.steps itself",
        "--stages.b.train.steps=9": "it has a, stage2",
        "--stages.a=9": "--stages.a.section.key=value",
    }.items():
        with pytest.raises(ConfigError, match="stage") as error:
            load_config(DitConfig, path, [override])
        assert said in str(error.value)


def test_a_key_of_the_run_in_a_stage_is_refused_whatever_the_command_line_says(dit_config, tmp_path):
    path = tmp_path / "c.yaml"
    save_config(dit_config(tmp_path), path)
    path.write_text(path.read_text().replace("stages: []", "stages: [{name: a, run: {dir: x}}]"))
    with pytest.raises(ConfigError, match=r"stages: in a: run\.dir is the same in all stages: set it once, above"):
        curriculum(load_config(DitConfig, path, ["--run.dir=y"]))


def test_a_critic_is_there_in_all_stages_or_in_none(vae_config, tmp_path):
    assert curriculum(vae_config(tmp_path, "stages=[{data: {max_frames: 1}}, {loss: {lpips: 0.1}}]"))
    with pytest.raises(UserError, match=r"loss\.adversarial is 0 in some of the stages"):
        vae_config(tmp_path, "stages=[{}, {loss: {adversarial: 0.1}}]")


@pytest.mark.slow
def test_the_recipe_is_one_that_a_dry_run_accepts(digits_data, tiny_vae, tiny_t5, tmp_path, capsys):
    """With a narrow model and small packs of the digits: those of the recipe would hold thousands."""
    recipe = ROOT / "configs/dit/curriculum.yaml"
    names = ("images", "video_256", "video_512", "video_720")
    tiny = {
        "run.dir": tmp_path / "run",
        "vae": tiny_vae,
        "text_encoder": tiny_t5,
        "data.manifest": digits_data / "train.jsonl",
        "data.fps": "null",  # the digits are slower
        "model.width": 32,
        "model.depth": 2,
        "model.heads": 4,
        **{f"stages.{name}.data.tokens_per_pack": 2**7 * n for n, name in enumerate(names, 1)},
        "train.compile": "false",  # test_preflight.py counts what compiled blocks keep, which takes long
        "run.dry_run": "true",
    }
    config = load_config(DitConfig, recipe, [f"--{key}={value}" for key, value in tiny.items()])
    train(config, DitTask)
    said = capsys.readouterr().out
    assert "the largest is " in said and "all 4 stages, 210,000 steps" in said
    whole = curriculum(load_config(DitConfig, recipe))
    assert [stage.config.data.max_area for stage in whole] == [256**2, 256**2, 512**2, 720 * 1280]
    assert all(stage.config.timesteps.shift == stage.config.scheduler.get("shift", 1.0) for stage in whole)
