"""Training a ControlNet: what packs and checkpoints hold, its loss written out, a run that is stopped, what is left."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from small_tasks import Stop, draws_of, lively, stopping

from latentvid.config.yaml_files import ConfigError
from latentvid.data.signals import signal_of
from latentvid.data.transforms import from_uint8
from latentvid.errors import UserError
from latentvid.models.adapters.control_files import read_control
from latentvid.models.control import Control
from latentvid.models.flops import backbone_flops
from latentvid.packing import Packed, patchify, spans
from latentvid.pipelines.arguments import ControlNet
from latentvid.pipelines.loading import load_pipeline
from latentvid.references import Role
from latentvid.sequence import SequenceGroup
from latentvid.training.checkpoint.init import Wanted, open_source
from latentvid.training.dryrun.preflight import blank_pack
from latentvid.training.stages.dit.task import DitTask
from latentvid.training.trainer import train

CPU = torch.device("cpu")
pytestmark = pytest.mark.usefixtures("fresh_accelerate")
ROLE = "data.references={edges: {signal: luminance, place: control}}"


@pytest.fixture
def config(dit_config, digits_data, tiny_pipeline):
    """`config(run, ...)`: a tiny DitConfig over the digits' luminance."""

    def make(run: Path, *more: str):
        data = ("data.latents=null", f"data.manifest={digits_data / 'train.jsonl'}", "data.max_frames=5")
        base = (f"init={tiny_pipeline}", f"model.mlp_ratio={8 / 3}", "data.tokens_per_pack=160", "controlnet.every=2")
        return dit_config(run, *data, *base, ROLE, "train.steps=4", "checkpoint.every=2", *more)

    return make


def test_a_packs_loss_is_that_of_each_sample_written_out(config, tmp_path):
    """The signal is that of the window's own pixels, encoded as the clip is; at first the loss is the base's."""
    task = DitTask(config(tmp_path / "run"), CPU)
    pack = task.prepare(task.make_pack(draws_of(task, 6)))
    assert not pack.layout.references and pack.control.shape == pack.clean.shape and not task.partial
    with torch.no_grad():
        plain = task.model(pack.noise, pack.timestep, pack.text, pack.layout, pack.text_layout)
        control = Control.of(pack.control)
        now = task.model(pack.noise, pack.timestep, pack.text, pack.layout, pack.text_layout, control=control)
    assert torch.equal(plain, now)
    lively(task.model.controls)
    losses, _ = task.loss(task.model, pack, 0)
    texts, start = iter(pack.text.split(pack.text_layout.lengths)), 0
    for place, (number, grid) in enumerate(zip(pack.numbers, pack.layout.grid, strict=True)):
        clip = task.source.load(number % len(task.grids), 0, number)
        (shown,) = clip.references
        assert torch.equal(shown, signal_of(Role(place="control", signal="luminance"), clip.pixels))
        mean = task.vae.encode(from_uint8(shown)[None]).latent_dist.mean
        signal = patchify([task.vae.normalise(mean)[0].detach()], task.patch)[0]
        rows = slice(start, start + len(signal))
        t = pack.timestep[pack.layout.frame_segment == place]
        of_token = t.repeat_interleave(grid[1] * grid[2])[:, None]
        clean, noise, words = pack.clean[rows], pack.noise[rows], next(texts)
        layout, of_words = Packed.of([grid]), Packed.of_lengths([len(words)])
        noised = (1 - of_token) * clean + of_token * noise
        out = task.model(
            noised, t, words, layout, of_words, fps=pack.rates[place : place + 1], control=Control.of(signal)
        )
        torch.testing.assert_close(losses[place], ((out - (noise - clean)) ** 2).mean(), rtol=1e-4, atol=1e-5)
        start += len(signal)


def test_a_run_gone_on_with_is_one_not_stopped_and_leaves_the_branch_alone(config, tmp_path, tiny_pipeline, capsys):
    short = ("train.steps=2", "checkpoint.every=1", "data.packs_per_step=1")
    train(config(tmp_path / "whole", *short), DitTask)
    with pytest.raises(Stop):
        train(config(tmp_path / "run", *short), stopping(1))
    train(config(tmp_path / "run", *short), DitTask)
    for kind in ("model", "ema", "optimizer"):
        a, b = (load_file(tmp_path / run / f"checkpoints/step-00000002/{kind}.safetensors") for run in ("whole", "run"))
        assert a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)
        assert all(key.startswith("controls.0.") for key in a)
    net = tmp_path / "run" / "controlnet"
    assert sorted(file.name for file in net.iterdir()) == ["config.json", "diffusion_pytorch_model.safetensors"]
    held = json.loads((net / "config.json").read_text())
    assert (held["every"], held["blocks"], held["reference"]["role"]) == (2, 1, "edges")
    assert held["base"]["where"].startswith(str(tiny_pipeline))
    capsys.readouterr()
    pipeline = load_pipeline(tiny_pipeline, "cpu", control=[ControlNet(net)])
    assert "other weights" not in capsys.readouterr().err  # the base is known again by its fingerprint
    average = load_file(tmp_path / "run/checkpoints/step-00000002/ema.safetensors")
    for name, tensor in pipeline.transformer.controls.state_dict().items():
        assert torch.equal(tensor, average[f"controls.{name}"])
    with pytest.raises(UserError, match=f"holds no ControlNet .*: give {net}"):
        read_control(tmp_path / "run")
    with pytest.raises(UserError, match=f"holds a ControlNet alone.*{net} by controlnet.init"):
        open_source(str(tmp_path / "run"), "ema", Wanted("dit", "dit", "transformer", {}))
    again = DitTask(config(tmp_path / "again", f"controlnet.init={net}"), CPU, data=False)
    assert all(torch.equal(p, average[name]) for name, p in again.model.named_parameters() if p.requires_grad)


def test_processes_share_packs_and_memory_and_flops_count_it(config, tmp_path):
    task = DitTask(config(tmp_path / "run"), CPU)
    lively(task.model.controls)
    whole = task.prepare(task.make_pack(draws_of(task, 6)))
    made = []
    for rank in range(2):
        task.sequence = SequenceGroup("group", rank, 2)
        made.append(task.make_pack(draws_of(task, 6)))
    task.sequence = None
    pieces = [task._encode(part) for part in made]
    torch.testing.assert_close(sorted(torch.cat([p.control for p in pieces]).sum(1)), sorted(whole.control.sum(1)))
    assert [s.stop - s.start for s in spans(whole.layout.lengths, 2)] == [len(part.noise) for part in made]
    shape = task.shapes[0]
    assert blank_pack(task, [shape]).control.shape == blank_pack(task, [shape]).clean.shape
    plain = DitTask(config(tmp_path / "run", "controlnet.every=null", "data.references={}"), CPU)
    grids, words = [shape.grid], [task.mean_text]
    more = backbone_flops(task.model, grids, words) / backbone_flops(plain.model, grids, words)
    assert 1.3 < more < 1.7  # one copy of two blocks


def test_what_cannot_be_is_refused(config, tmp_path):
    for more, message in [
        (("data.references={}",), "data.references has no role: give it one role"),
        (("controlnet.every=null",), "data.references.edges has place=control, which a ControlNet reads"),
        (("adapter.kind=lora",), "controlnet.every and adapter.kind both say what is trained"),
        (("init=null",), "leaves the model as it is: give its weights by init or model.from"),
        (("data.references={edges: {place: control}}",), "give column, which names the files, or signal"),
        (("data.references={edges: {place: control, signal: canny, dropout: 0.1}}",), "dropout: without its signal"),
        (("data.references={edges: {place: beside, signal: canny}}",), "signal is of what runs along"),
        (("data.references={edges: {place: control, signal: canny, max_area: 64}}",), "max_area: a ControlNet reads"),
        (("data.references={edges: {place: control, signal: sobel}}",), "canny"),
        (("controlnet.every=0",), "controlnet.every=0: must be a whole number from 1"),
    ]:
        with pytest.raises((ConfigError, UserError), match=message):
            config(tmp_path / "run", *more)
    with pytest.raises(UserError, match="controlnet.every=3: the model has 2 blocks"):
        DitTask(config(tmp_path / "run", "controlnet.every=3"), CPU)
    looks = ("samples.every=2", "samples.prompts=[a red 7]")
    with pytest.raises(UserError, match="samples.references: a ControlNet needs a signal for each prompt"):
        DitTask(config(tmp_path / "run", *looks), CPU)
