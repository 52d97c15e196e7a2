"""Prior preservation: clips of a subject's class, which the model makes before it is trained on them beside it."""

import json
import os
import signal
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from accelerate.state import AcceleratorState
from launching import ROOT, launch
from safetensors.torch import load_file

from latentvid.config.parsing import to_dict
from latentvid.config.yaml_files import ConfigError, dump_yaml
from latentvid.data.manifest.manifest import read_manifest
from latentvid.data.video.reading import probe
from latentvid.errors import UserError
from latentvid.packing import Packed
from latentvid.pipelines import prompts as module
from latentvid.training.launch import make_plan
from latentvid.training.signals import Preempted
from latentvid.training.stages.dit.prior import subject_words
from latentvid.training.stages.dit.prior_maker import prompts_of, usual_of
from latentvid.training.stages.dit.task import DitTask
from latentvid.training.trainer import train

pytestmark = pytest.mark.usefixtures("fresh_accelerate")
CPU = torch.device("cpu")
PROMPTS = ("a red 3 moves up", "a blue 5 bounces left")
PRIOR = (f"prior.prompts=[{', '.join(PROMPTS)}]", "prior.clips=11", "prior.steps=2", "prior.share=0.25", "prior.seed=7")
ALONE = ("model={}", "optim.schedule=constant", "data.latents=null", "train.steps=2", "checkpoint.every=1")
LORA = ("adapter.kind=lora", "adapter.rank=2")


@pytest.fixture(scope="module")
def subject(digits_data, tmp_path_factory) -> Path:
    """A manifest of three clips under a word that is no digit's."""
    rows = [json.loads(line) for line in (digits_data / "train.jsonl").read_text().splitlines()]
    table = tmp_path_factory.mktemp("subject") / "train.jsonl"
    clips = [row for row in rows if row["frames"] == 9][:3]
    lines = [
        {**row, "path": str(digits_data / row["path"]), "caption": f"a red zorp {i}"} for i, row in enumerate(clips)
    ]
    table.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return table


@pytest.fixture(scope="module")
def config(dit_config, tiny_pipeline, subject):
    def make(run: Path, *overrides: str):
        return dit_config(run, f"init={tiny_pipeline}", f"data.manifest={subject}", *ALONE, *PRIOR, *overrides)

    return make


@pytest.fixture(scope="module")
def made(tmp_path_factory, config) -> Path:
    """A run of two steps with its class clips, a LoRA."""
    AcceleratorState._reset_state(reset_partial_state=True)
    run = tmp_path_factory.mktemp("made") / "run"
    train(config(run, *LORA), DitTask)
    return run


def files(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.glob("[!.]*")) if path.is_file()}


def test_each_clip_is_of_its_prompt_and_seed_in_the_models_size(made):
    found = read_manifest(made / "prior/manifest.jsonl")
    assert [sample.caption for sample in found.samples] == [PROMPTS[i % 2] for i in range(11)]
    index = [json.loads(line) for line in (made / "prior" / module.INDEX).read_text().splitlines()]
    assert [record["seed"] for record in index] == list(range(7, 18)) and {r["steps"] for r in index} == {2}
    for sample in found.samples:
        info = probe(sample.path)
        assert (info.frames, info.height, info.width) == (5, 32, 32) == (sample.frames, sample.height, sample.width)
    assert len({data for name, data in files(made / "prior").items() if name.endswith("mp4")}) == 11


def test_the_clips_have_the_share_that_is_asked(made, config, subject):
    task = DitTask(config(made, *LORA), CPU)
    assert task.sources == (str(subject), str(made / "prior/manifest.jsonl"))
    assert "prior: " in task.summary() and "'zorp', " in task.summary() and "warning" not in task.summary()
    plan, drawn = make_plan(task.config, task), [0, 0]
    for _ in range(40):
        for pack in plan.next().packs:
            for draw in pack:
                drawn[task.source_of[draw.index]] += int(task.tokens[draw.index])
    assert drawn[1] / sum(drawn) == pytest.approx(0.25, abs=0.01)


def test_the_subjects_captions_are_never_dropped(made, config, dit_config, tiny_pipeline, subject, tmp_path):
    task = DitTask(config(made, *LORA, "caption.dropout=1"), CPU)
    pack = make_plan(task.config, task).next().packs[0]
    assert {task.source_of[draw.index]: task._drops(draw) for draw in pack} == {0: False, 1: True}
    assert sorted(set(task.make_pack(pack).captions)) == ["", "a red zorp 0", "a red zorp 1", "a red zorp 2"]
    plain = (f"init={tiny_pipeline}", f"data.manifest={subject}", *ALONE, *LORA, "caption.dropout=1")
    alone = DitTask(dit_config(tmp_path / "run", *plain), CPU)
    assert set(alone.make_pack(make_plan(alone.config, alone).next().packs[0]).captions) == {""}


def test_a_distilled_model_makes_them_without_a_second_guidance():
    index = {"steps": 4, "guidance": 3.0, "frames": 5, "height": 32, "width": 32, "fps": 8.0}
    assert usual_of("", index)["guidance"] == 3.0
    assert usual_of("", index | {"guidance_interval": [0.5, 1.0]})["guidance_interval"] == [0.5, 1.0]
    student = {"steps": 4, "guidance": 3.0, "levels": [1.0, 0.75, 0.5, 0.25, 0.0]}
    assert usual_of("", index | {"student": student}) == index | {"guidance": 1.0}


def test_weights_are_of_the_rest(made, config, subject, digits_data):
    both = f"data.manifest=[{subject}, {digits_data / 'train.jsonl'}]"
    task = DitTask(config(made, *LORA, both, "data.weights=[3, 1]"), CPU)
    assert task.source_weights == pytest.approx((0.75 * 0.75, 0.25 * 0.75, 0.25))
    task.config.data.weights = ()  # then as much as each has of the tokens
    tokens = [int(task.tokens[task.source_of == i].sum()) for i in range(2)]
    assert task.source_weights == pytest.approx([0.75 * n / sum(tokens) for n in tokens] + [0.25])
    task.config.data.weights = (1.0, 1.0, 1.0)
    with pytest.raises(UserError, match="data.weights has 3 values for 2 sources .* prior.share"):
        make_plan(task.config, task)


def stopped_after(count: int, monkeypatch) -> list[str]:
    """Asks the process to stop when it has written so many clips; the names of what is written."""
    write, written = module.write, []

    def writing(path, *words):
        if len(written) == count:
            os.kill(os.getpid(), signal.SIGTERM)
        written.append(path.name)
        write(path, *words)

    monkeypatch.setattr(module, "write", writing)
    return written


def test_a_stop_in_between_changes_no_byte_and_nothing_is_made_twice(made, config, tmp_path, monkeypatch):
    run = tmp_path / "run"
    written = stopped_after(5, monkeypatch)
    with pytest.raises(Preempted):
        train(config(run, *LORA), DitTask)
    assert len(written) == 5 and not (run / "prior/manifest.jsonl").exists()
    monkeypatch.undo()
    again = stopped_after(100, monkeypatch)
    train(config(run, *LORA), DitTask)
    assert sorted(written + again) == [f"{i:05d}.mp4" for i in range(11)]
    assert files(run / "prior") == files(made / "prior")
    for kind in ("model", "ema"):
        mine, theirs = (load_file(r / f"checkpoints/step-00000002/{kind}.safetensors") for r in (run, made))
        assert mine.keys() == theirs.keys() and all(torch.equal(mine[name], theirs[name]) for name in mine)


def test_a_run_goes_on_with_its_clips_and_without_the_model_that_made_them(made, config, tmp_path, monkeypatch):
    run, shared = tmp_path / "run", f"prior.dir={made / 'prior'}"
    written = stopped_after(0, monkeypatch)
    train(config(run, shared, "train.steps=1"), DitTask)  # of the whole model: the same base, so the same clips
    monkeypatch.setattr(DitTask, "_take", lambda *words: pytest.fail("the base is not read again"))
    train(config(run, shared), DitTask)
    assert not written and not (run / "prior").exists() and (run / "checkpoints/step-00000002").is_dir()
    with pytest.raises(UserError, match=r"prior.seed was 7, is 8"):
        train(config(run, shared, "prior.seed=8"), DitTask)
    with pytest.raises(UserError, match="does not hold all its clips"):
        train(config(run, f"prior.dir={tmp_path / 'empty'}", "train.steps=3"), DitTask)


@pytest.mark.parametrize("options", [pytest.param((), marks=pytest.mark.slow), LORA])
def test_class_clips_may_teach_what_the_model_before_predicts(options, made, config, tmp_path):
    """Their error is that beside its prediction at the same noised latents: nothing at the start, of the subject's it
    is as ever. A run that goes on is one that was not stopped, and needs the model again."""
    shared, run = (f"prior.dir={made / 'prior'}", "prior.target=model", *options), tmp_path / "run"
    task = DitTask(config(run, *shared, "caption.dropout=0.5"), CPU)
    plan = make_plan(task.config, task)
    draws = next(pack for _ in range(9) for pack in plan.next().packs if {task._source_of(d) for d in pack} == {0, 1})
    pack = task.prepare(task.make_pack(draws))
    assert pack.by_model.tolist() == [task._source_of(draw) == 1 for draw in sorted_as(pack, draws)]
    losses = task.loss(task.model, pack, 0)[0].detach()
    plain = task.errors(task.model, replace(pack, by_model=None))[0].detach()
    assert not losses[pack.by_model].any() and torch.equal(losses[~pack.by_model], plain[~pack.by_model])
    with torch.no_grad():
        for parameter in (p for p in task.model.parameters() if p.requires_grad):
            parameter += 0.02 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(0))
    fresh = DitTask(config(run, *shared), CPU).model
    losses = task.loss(task.model, pack, 0)[0].detach()
    for i in torch.nonzero(pack.by_model).flatten().tolist():  # each class clip alone, against the model at its start
        alone = sample_of(pack, i)
        t = alone["t"].index_select(0, alone["layout"].frame)[:, None]
        z = task.scheduler.mix(alone["clean"], alone["noise"], t)
        words = (z, alone["t"], alone["text"], alone["layout"], alone["words"])
        with torch.no_grad():
            now, then = (net.eval()(*words, fps=alone["rates"]) for net in (task.model, fresh))
        assert float(losses[i]) == pytest.approx(float((now - then).square().mean()), rel=1e-4)
    train(config(run, *shared), DitTask)
    parted = tmp_path / "parted"
    train(config(parted, *shared, "train.steps=1"), DitTask)
    train(config(parted, *shared), DitTask)
    mine, theirs = (load_file(r / "checkpoints/step-00000002/model.safetensors") for r in (run, parted))
    assert mine.keys() == theirs.keys() and all(torch.equal(mine[name], theirs[name]) for name in mine)
    assert not any("before" in name or "copy" in name for name in mine)


def sorted_as(pack, draws):
    by_number = {draw.number: draw for draw in draws}
    return [by_number[number] for number in pack.numbers]


def sample_of(pack, i: int) -> dict:
    """What the model reads of one sample of a pack."""
    layout, words = pack.layout, pack.text_layout
    tokens, frames = layout.segment == i, layout.frame_segment == i
    of_words = torch.repeat_interleave(torch.arange(len(words.lengths)), torch.tensor(words.lengths)) == i
    return {
        "clean": pack.clean[tokens],
        "noise": pack.noise[tokens],
        "t": pack.timestep[frames],
        "rates": pack.rates[i : i + 1],
        "layout": Packed.of([layout.grid[i]]),
        "text": pack.text[of_words],
        "words": Packed.of_lengths([words.lengths[i]]),
    }


def test_caches_get_a_cache_of_the_clips(dit_config, tiny_pipeline, tiny_latents, tmp_path):
    words = (f"init={tiny_pipeline}", *ALONE, f"data.latents={tiny_latents}", *PRIOR, "prior.clips=3")
    train(dit_config(tmp_path / "run", *words, *LORA), DitTask)
    task = DitTask(dit_config(tmp_path / "run", *words, *LORA), CPU)
    assert task.sources == (str(tiny_latents), str(tmp_path / "run/prior/latents"))
    assert (task.source_of == 1).sum() == 3 and task.source_weights == pytest.approx((0.75, 0.25))
    assert "0.25 of the tokens" in task.summary()


def test_a_dry_run_says_that_they_are_to_be_made(config, subject, tmp_path):
    task = DitTask(config(tmp_path / "run", *LORA, "run.dry_run=true"), CPU)
    assert "before training the model makes its 11 clips" in task.summary()
    assert task.sources == (str(subject),) and task.source_weights == () and not (tmp_path / "run").exists()


PICTURES = ("prior.clips=2", "prior.frames=1", "prior.height=32", "prior.width=32")


def test_pictures_of_a_published_model(repository, published_config, subject, tmp_path):
    config = published_config(tmp_path, repository("wan"), *LORA, f"data.manifest={subject}", *PRIOR, *PICTURES)
    DitTask.prepare_run(config, CPU, nullcontext)
    found = read_manifest(tmp_path / "prior/manifest.jsonl").samples
    assert [Path(sample.path).name for sample in found] == ["00000.png", "00001.png"] and found.is_image.all()


@pytest.mark.slow
def test_a_lora_of_a_published_model_beside_its_class(repository, published_config, subject, tmp_path):
    words = (*LORA, f"data.manifest={subject}", *PRIOR, *PICTURES, "train.steps=1", "log.draws=true")
    train(published_config(tmp_path / "run", repository("wan"), *words), DitTask)
    step = json.loads((tmp_path / "run/draws.jsonl").read_text().splitlines()[0])
    drawn = {index for _, index in step["draws"]}
    assert drawn & {0, 1, 2} and drawn & {3, 4} and (tmp_path / "run/lora").is_dir()


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("prior.seed=8", "00000.mp4 is there already, but made with another seed .* another prior.dir"),
        ("prior.steps=3", "made with another steps"),
        ("prior.clips=9", "lists 11 clips, which are not the 9 that prior asks for: give another prior.dir"),
        ("prior.frames=6", "prior: 6 frames"),
        ("prior.clips=1", "prior.prompts has 2 prompts, but prior.clips is 1"),
        ("data.tokens_per_pack=16", r"prior: a clip of 5 frames of 32 x 32 has 32 tokens, and a pack holds 16"),
        ("data.manifest=null", "prior: give the subject's clips too"),
    ],
)
def test_what_cannot_be_is_refused_by_name(override, message, made, config, tmp_path):
    with pytest.raises(UserError, match=message):
        train(config(tmp_path / "run", f"prior.dir={made / 'prior'}", override), DitTask)


def test_image_models_are_refused(repository, published_config, tmp_path):
    with pytest.raises(UserError, match="makes clips of pictures, not of prompts alone: put clips of the class"):
        train(published_config(tmp_path / "run", repository("wan_clip"), *PRIOR), DitTask)


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (("init=null", "model.width=32"), "made by the model that the run begins with: give init or model.from"),
        (("data.image_share=0.5",), "data.image_share and prior.share"),
        (("prior.prompts_file=x.txt",), "prompts and prompts_file"),
        (("prior.prompts=[]",), "give prompts, or leave prior out"),
        (("prior.prompts=['', a]",), "has an empty one"),
        (("prior.share=1",), "prior.share=1"),
    ],
)
def test_contradictions_are_refused_at_once(overrides, message, config, tmp_path):
    with pytest.raises(ConfigError, match=message):
        config(tmp_path, *overrides)


def test_prompts_from_a_file(config, tmp_path):
    (tmp_path / "class.txt").write_text("\ufeffa dog\n\n  two   dogs \n", encoding="utf-8")  # as some editors begin
    settings = config(tmp_path, "prior.prompts=[]", f"prior.prompts_file={tmp_path / 'class.txt'}").prior
    assert prompts_of(settings) == ["a dog", "two dogs"]
    (tmp_path / "class.txt").write_bytes(b"caf\xe9")
    with pytest.raises(UserError, match="class.txt cannot be read"):
        prompts_of(settings)
    (tmp_path / "class.txt").write_text("\n")
    with pytest.raises(UserError, match="class.txt has no prompt"):
        prompts_of(settings)


def test_the_word_that_tells_the_subject_from_its_class():
    assert subject_words(["A Sks dog, running", "a sks dog."], ["a dog runs"]) == ["sks"]
    assert subject_words(["a dog"], ["a dog runs"]) == [] == subject_words([], ["a dog"])


@pytest.mark.slow
def test_two_processes_make_what_one_does(made, config, tmp_path):
    settings = to_dict(config(tmp_path / "run", *LORA))
    (tmp_path / "config.yaml").write_text(dump_yaml(settings))
    launch("ddp", 2, [ROOT / "train/train_dit.py", tmp_path / "config.yaml"])
    assert files(tmp_path / "run/prior") == files(made / "prior")
    mine, theirs = (load_file(r / "checkpoints/step-00000002/model.safetensors") for r in (tmp_path / "run", made))
    for name, value in theirs.items():
        torch.testing.assert_close(mine[name], value, rtol=1e-4, atol=1e-5)
