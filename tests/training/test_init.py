"""A run that begins with another model's weights: all of them, or what fits, and it says which."""

import json
import shutil
from pathlib import Path

import huggingface_hub
import pytest
import torch
import yaml
from accelerate.state import AcceleratorState
from comparing import lines, same, state
from safetensors.torch import load_file, save_file

from latentvid.config.schema import DitConfig
from latentvid.errors import UserError
from latentvid.models.conditions import Conditions
from latentvid.models.transformer import VideoDiT
from latentvid.packing import Packed
from latentvid.training.checkpoint import init as module
from latentvid.training.checkpoint.checkpoint import CheckpointStore
from latentvid.training.checkpoint.init import Source, begin_with
from latentvid.training.export import export_run
from latentvid.training.monitor.metrics import read_metrics
from latentvid.training.stages.dit.task import DitTask
from latentvid.training.stages.table import STAGES
from latentvid.training.trainer import train

pytestmark = pytest.mark.usefixtures("fresh_accelerate")
CPU = torch.device("cpu")
ALONE = ("model={}", "optim.schedule=constant")  # the architecture is that of `init`


@pytest.fixture(scope="module")
def old(tmp_path_factory, dit_config, tiny_latents) -> Path:
    """A run of four steps, with a checkpoint and a measurement of every second."""
    AcceleratorState._reset_state(reset_partial_state=True)
    run = tmp_path_factory.mktemp("old") / "run"
    train(dit_config(run, *measured(tiny_latents), "train.steps=4", "checkpoint.every=2"), DitTask)
    return run


def measured(latents: Path) -> tuple[str, ...]:
    return "validation.every=2", f"validation.latents={latents}", "validation.samples=6", "validation.bins=2"


def validated(run: Path, step: int) -> dict[str, float]:
    return {r["weights"]: r["loss"] for r in read_metrics(run, "validation.jsonl") if r["step"] == step}


def weights(task: DitTask) -> dict[str, torch.Tensor]:
    return {name: value.detach() for name, value in task.model.named_parameters()}


def in_parts(checkpoint: Path, target: Path) -> Path:
    """The checkpoint as two processes that shard the model write it."""
    store = CheckpointStore(target)
    partial = store.begin(4)
    for kind in ("model", "ema", "optimizer"):
        whole = load_file(checkpoint / f"{kind}.safetensors")
        for part in range(2):
            pieces = {}
            for name, tensor in whole.items():
                cut = tensor.numel() // 3
                start, stop = (0, cut) if part == 0 else (cut, tensor.numel())
                pieces |= {f"{name}[{start}:{stop}]": tensor.flatten()[start:stop].clone()} if stop > start else {}
            save_file(pieces, partial / f"{kind}-0000{part}-of-00002.safetensors")
    shutil.copy(checkpoint / "state.json", partial)
    return store.commit(4)


def in_hub(pipeline: Path, cache: Path) -> str:
    """The pipeline in a hub's cache, as links to blobs; its name."""
    snapshot = cache / "models--someone--old" / "snapshots" / "abc"
    shutil.copytree(pipeline, snapshot)
    (snapshot.parent.parent / "refs").mkdir()
    (snapshot.parent.parent / "refs/main").write_text("abc")
    blob = snapshot.parent.parent / "blobs" / "1"
    blob.parent.mkdir()
    file = snapshot / "transformer/diffusion_pytorch_model.safetensors"
    shutil.move(file, blob)
    file.symlink_to(blob)
    return "someone/old"


@pytest.mark.parametrize("kind", ["run", "checkpoint", "parts", "pipeline", "transformer", "hub"])
def test_every_place_of_weights_will_do(kind, old, dit_config, tmp_path, monkeypatch):
    """Averaged ones, whatever wrote them, and the architecture with them."""
    newest = old / "checkpoints/step-00000004"
    if kind == "hub":
        real = huggingface_hub.snapshot_download
        monkeypatch.setattr(module, "snapshot_download", lambda name, **k: real(name, cache_dir=tmp_path / "hub", **k))
    init = {
        "run": lambda: old,
        "checkpoint": lambda: newest,
        "parts": lambda: in_parts(newest, tmp_path / "alone"),
        "pipeline": lambda: old / "pipeline",
        "transformer": lambda: old / "pipeline/transformer",
        "hub": lambda: in_hub(old / "pipeline", tmp_path / "hub"),
    }[kind]()
    task = DitTask(dit_config(tmp_path / "run", *ALONE, f"init={init}"), CPU)
    assert same(weights(task), state(old, 4, "ema"))
    assert task.config.model["heads"] == 2 and task.config.model["rope_theta"] == 100.0
    assert task.origin.taken == task.origin.total and "(100.00%)" in task.origin.summary()


@pytest.mark.parametrize("kind", ["ema", "raw"])
def test_held_out_loss_before_the_first_step_is_the_old_models(kind, old, dit_config, tiny_latents, tmp_path, capsys):
    config = dit_config(tmp_path, *ALONE, *measured(tiny_latents), f"init={old}", f"init_weights={kind}")
    train(config, DitTask)
    said = capsys.readouterr().err
    assert f"(100.00%) from {old}/checkpoints/step-00000004 (" in said and "from the start, with the weights of" in said
    assert same(state(old, 4, "model"), state(old, 4, "ema")) is False
    before, at_once = validated(old, 4)[kind], validated(tmp_path, 0)
    assert at_once == {"ema": before, "raw": before} and validated(tmp_path, 2)["raw"] != before
    assert json.loads((tmp_path / "best.json").read_text())["step"] > 0  # of step 0 there is no checkpoint
    assert json.loads((tmp_path / "run.json").read_text())["init"]["taken"] == sum(
        p.numel() for p in state(old, 4).values()
    )


def test_a_run_goes_on_and_is_exported_without_the_weights_it_began_with(old, dit_config, tmp_path):
    copy = shutil.copytree(old / "pipeline", tmp_path / "copy")
    options = (*ALONE, f"init={copy}", "checkpoint.every=1")
    run, whole = tmp_path / "run", tmp_path / "whole"
    train(dit_config(run, *options, "train.steps=2"), DitTask)
    train(dit_config(whole, *options, "train.steps=3"), DitTask)
    assert yaml.safe_load((run / "config.yaml").read_text())["model"]["heads"] == 2
    about = json.loads((run / "run.json").read_text())
    shutil.rmtree(copy)
    train(dit_config(run, *options, "train.steps=3"), DitTask)
    assert lines(run) == lines(whole) and same(state(run, 3), state(whole, 3))
    assert json.loads((run / "run.json").read_text())["init"] == about["init"]
    export_run(run, tmp_path / "out", STAGES)
    with pytest.raises(UserError, match=r"model\.depth was 2, is 3"):
        train(dit_config(run, *options, "model.depth=3", "train.steps=4"), DitTask)
    with pytest.raises(UserError, match="init was "):
        train(dit_config(run, *options, f"init={old}", "train.steps=4"), DitTask)


# --- what does not fit ---


def test_what_does_not_fit_is_listed(old, dit_config, tmp_path):
    def begin(*options: str) -> DitTask:
        return DitTask(dit_config(tmp_path, *ALONE, f"init={old}", *options), CPU)

    said = r"of another shape: tokens_in.weight is \[32, 4\], was \[32, 16\], .*not as it was: model.patch is 1, was 2"
    with pytest.raises(UserError, match=said + ".*init_partial=true to take what fits"):
        begin("model.patch=1")
    with pytest.raises(UserError, match=r"not there: blocks\.2\..*model\.depth is 3, was 2"):
        begin("model.depth=3")
    with pytest.raises(UserError, match=r"there alone: blocks\.1\."):
        begin("model.depth=1")
    # what no shape tells
    with pytest.raises(
        UserError, match=r"not as it was: model\.attention is causal, was full, model\.rope_theta is 50, was 100"
    ):
        begin("model.attention=causal", "model.rope_theta=50")
    with pytest.raises(UserError, match=r"scheduler\.target is x, was flow"):
        begin("scheduler.target=x")
    with pytest.raises(UserError, match=r"init_partial and init_weights .* give init"):
        dit_config(tmp_path, "init_partial=true")


def test_what_fits_is_taken_and_the_rest_said(old, dit_config, digits_data, tmp_path):
    """Another patch size: the blocks are the old ones, the maps of patches are what they are without `init`."""
    online = ("data.latents=null", f"data.manifest={digits_data / 'train.jsonl'}")
    task = DitTask(dit_config(tmp_path, *ALONE, f"init={old}", "init_partial=true", "model.patch=1", *online), CPU)
    alone = DitTask(dit_config(tmp_path, f"model={json.dumps(task.config.model)}", *online), CPU)
    before, now, new = state(old, 4, "ema"), weights(task), weights(alone)
    maps = {"tokens_in.weight", "tokens_out.weight", "tokens_out.bias"}
    assert {name for name in now if now[name].shape != before[name].shape} == maps
    assert all(torch.equal(now[name], (new if name in maps else before)[name]) for name in now)
    count = sum(now[name].numel() for name in maps)
    assert task.origin.total - task.origin.taken == count
    assert f"{count:,} (" in task.origin.summary() and "model.patch is 1, was 2" in task.origin.summary()


def test_channels_that_a_condition_adds_change_nothing_at_first(tiny_pipeline):
    """Whatever the new channels hold; and they can learn."""
    old = VideoDiT.from_pretrained(tiny_pipeline / "transformer")
    source = module.open_source(
        str(tiny_pipeline), "ema", module.Wanted("dit", "dit", "transformer", {"latent_channels": 4})
    )
    arguments = {key: value for key, value in old.config.items() if not key.startswith("_")}
    arguments["condition_channels"] = "mask_and_latents"
    with pytest.raises(UserError, match="not there: channels_in.weight.*init_partial=true"):
        begin_with(VideoDiT(**arguments), source, [], partial=False)
    model = VideoDiT(**arguments)
    origin = begin_with(model, source, [], partial=True)
    assert origin.total - origin.taken == 32 * (1 + 4) * 2**2 and "channels_in.weight" in origin.summary()
    layout, text_layout = Packed.of([(2, 3, 3), (1, 2, 4)]), Packed.of_lengths([3, 5])
    tokens, text = torch.randn(layout.tokens, 16), torch.randn(8, 32)
    level = torch.tensor([0.2, 0.2, 0.7])
    expected = old(tokens, level, text, layout, text_layout)
    channels = Conditions(channels=torch.randn(layout.tokens, 20))
    found = model(tokens, level, text, layout, text_layout, conditions=channels)
    assert torch.equal(found, expected) and expected.abs().max() > 0.1  # not two zeros
    found.square().mean().backward()
    assert model.channels_in.weight.grad.abs().amin(1).max() > 0


def test_nothing_is_not_a_beginning(dit_config, tmp_path):
    model = VideoDiT(latent_channels=4, width=32, depth=1, heads=2, text_width=32)
    other = Source("X", "dit", None, {"unet.weight": (3, 3)}, lambda name: torch.zeros(3, 3), {})
    with pytest.raises(UserError, match=r"no parameter of X fits this model \(it has unet\.weight\)"):
        begin_with(model, other, [], partial=True)


@pytest.mark.parametrize(
    ("init", "said"),
    [
        ("nowhere/at/all", "there is no such folder"),
        ("someone/nothing", "is neither a folder nor found on the hub"),
        ("{tmp}", "holds no weights: give a pipeline's folder"),
        ("{old}/pipeline/vae", "holds a CausalVideoAutoencoder, not a VideoDiT"),
        ("{old}/pipeline/text_encoder", "holds a T5EncoderModel, not a VideoDiT"),
        ("{broken}", r"is damaged: ema\.safetensors does not match its sha256"),
        ("{vae}", "is of a run of stage vae, not dit"),
    ],
)
def test_what_holds_no_such_weights_is_said(init, said, old, dit_config, tmp_path):
    broken = shutil.copytree(old / "checkpoints/step-00000004", tmp_path / "broken")
    data = bytearray((broken / "ema.safetensors").read_bytes())
    data[-1] ^= 1
    (broken / "ema.safetensors").write_bytes(data)
    vae = tmp_path / "vae"
    shutil.copytree(old / "checkpoints", vae / "checkpoints")
    (vae / "config.yaml").write_text("stage: vae\n")
    (tmp_path / "empty").mkdir()
    init = init.format(tmp=tmp_path / "empty", old=old, broken=broken, vae=vae)
    with pytest.raises(UserError, match=said):
        DitTask(dit_config(tmp_path / "run", *ALONE, f"init={init}"), CPU)


def test_an_export_has_one_set_of_weights(old, dit_config, tmp_path):
    with pytest.raises(UserError, match="init_weights=raw: .* has one set of weights"):
        DitTask(dit_config(tmp_path, *ALONE, f"init={old / 'pipeline'}", "init_weights=raw"), CPU)
    assert DitConfig.__dataclass_fields__["init"].metadata["help"]


def test_checkpoints_of_older_versions_did_not_say_their_model(old, dit_config, tmp_path):
    """The run's configuration does; a checkpoint that lies alone is taken for the model that is asked for."""
    run = shutil.copytree(old, tmp_path / "older")
    shutil.rmtree(run / "checkpoints/step-00000002")
    store = CheckpointStore(run / "checkpoints")
    partial = store.begin(4)
    for file in (run / "checkpoints/step-00000004").glob("*.safetensors"):
        shutil.copy(file, partial)
    told = json.loads((run / "checkpoints/step-00000004/state.json").read_text())
    assert told.pop("model")["width"] == 32
    (partial / "state.json").write_text(json.dumps(told))
    store.commit(4)
    task = DitTask(dit_config(tmp_path / "run", *ALONE, f"init={run}"), CPU)
    assert same(weights(task), state(old, 4, "ema"))
    (run / "config.yaml").unlink()
    task = DitTask(dit_config(tmp_path / "run", f"init={run}"), CPU)
    assert same(weights(task), state(old, 4, "ema"))
    with pytest.raises(UserError, match=r"of another shape: .*was \[32\]"):
        DitTask(dit_config(tmp_path / "run", *ALONE, f"init={run}"), CPU)
