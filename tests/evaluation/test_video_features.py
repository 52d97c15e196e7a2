"""VideoMAE against transformers', V-JEPA's probe against its formula, JEDi against the authors': random weights."""

import math

import pytest
import torch
import torch.nn.functional as nnf
from transformers import VideoMAEConfig, VideoMAEForVideoClassification

from latentvid.errors import ClipError, UserError
from latentvid.evaluation.rows import Clip
from latentvid.evaluation.sets import video_transformer
from latentvid.evaluation.sets.scores import JediScore
from latentvid.evaluation.sets.video_features import ENCODER, PROBE, VIDEOMAE, VideoMaeRows, VJepaRows
from latentvid.evaluation.sets.video_transformer import Pooler, VideoMae, VJepa

CPU = torch.device("cpu")
WIDTH, HEADS, HIDDEN, DEPTH, PATCH = 24, 3, 40, 2, 56


@pytest.fixture(autouse=True)
def small(monkeypatch):
    monkeypatch.setitem(video_transformer.HEADS, WIDTH, HEADS)


def published_names(model: VideoMAEForVideoClassification) -> dict[str, torch.Tensor]:
    """transformers' weights under the names of the published file, with queries, keys and values in one."""
    w = model.state_dict()
    found = {
        f"patch_embed.proj.{k}": w[f"videomae.embeddings.patch_embeddings.projection.{k}"] for k in ("weight", "bias")
    }
    pairs = {"norm1": "layernorm_before", "norm2": "layernorm_after", "attn.proj": "attention.output.dense"}
    pairs |= {"mlp.fc1": "intermediate.dense", "mlp.fc2": "output.dense"}
    for i in range(DEPTH):
        layer, at = f"videomae.encoder.layer.{i}", f"blocks.{i}"
        for ours, theirs in pairs.items():
            found |= {f"{at}.{ours}.{k}": w[f"{layer}.{theirs}.{k}"] for k in ("weight", "bias")}
        attention = f"{layer}.attention.attention"
        found[f"{at}.attn.qkv.weight"] = torch.cat(
            [w[f"{attention}.{part}.weight"] for part in ("query", "key", "value")]
        )
        found |= {f"{at}.attn.{k[0]}_bias": w[f"{attention}.{k}.bias"] for k in ("query", "value")}
    found |= {f"fc_norm.{k}": w[f"fc_norm.{k}"] for k in ("weight", "bias")}
    return found | {f"head.{k}": w[f"classifier.{k}"] for k in ("weight", "bias")}


@pytest.fixture
def transformers_model() -> VideoMAEForVideoClassification:
    torch.manual_seed(0)
    sizes = dict(hidden_size=WIDTH, num_attention_heads=HEADS, num_hidden_layers=DEPTH, intermediate_size=HIDDEN)
    config = VideoMAEConfig(**sizes, patch_size=PATCH, num_frames=16, layer_norm_eps=1e-6, num_labels=5)
    model = VideoMAEForVideoClassification(config).eval()
    model.fc_norm.eps = 1e-6
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
            if "weight" not in name:
                parameter.add_(0.3 * torch.randn_like(parameter))
    return model


def test_videomae_is_transformers_before_its_head(transformers_model, tmp_path):
    (tmp_path / "videomae").mkdir()
    file = tmp_path / "videomae" / "tiny.pth"
    torch.save({"module": published_names(transformers_model)}, file)
    network = VideoMae(video_transformer.read_weights(file, "model", "module"))
    clip = torch.rand(2, 3, 16, 224, 224)
    seen = {}
    transformers_model.fc_norm.register_forward_hook(lambda _, __, out: seen.update(out=out))
    with torch.no_grad():
        transformers_model(clip.movedim(1, 2))
        torch.testing.assert_close(network(clip), seen["out"], rtol=1e-4, atol=1e-4)
    assert network.frames == 16 and not network.train().training


def test_rows_of_videomae_are_of_plain_frames(transformers_model, tmp_path, monkeypatch):
    monkeypatch.setattr("latentvid.evaluation.sets.networks.KNOWN_FILES", {})
    with pytest.raises(UserError, match=f"there is no WEIGHTS/videomae/{VIDEOMAE}"):
        VideoMaeRows(tmp_path, CPU)
    (tmp_path / "videomae").mkdir()
    torch.save({"module": published_names(transformers_model)}, tmp_path / "videomae" / VIDEOMAE)
    rows = VideoMaeRows(tmp_path, CPU)
    pixels = torch.randint(256, (16, 30, 50, 3), dtype=torch.uint8)
    frames = nnf.interpolate(pixels.movedim(-1, 1) / 255, (224, 224), mode="bilinear")
    torch.testing.assert_close(rows(Clip(pixels)), rows.network(frames.movedim(0, 1)[None]))
    with pytest.raises(ClipError, match=r"a\.mp4: 17 frames, but the network takes 16: --frames 16"):
        rows(Clip(pixels[[0, *range(16)]], name="a.mp4"))
    torch.save({"module": {"x": torch.zeros(1)}}, tmp_path / "videomae" / VIDEOMAE)
    with pytest.raises(UserError, match="does not hold the weights of VideoMAE"):
        VideoMaeRows(tmp_path, CPU)


def test_the_probe_is_its_formula():
    """One query: cross-attention of all tubes, then a network of two layers, each added to what came in."""
    torch.manual_seed(0)
    pooler, x = Pooler(WIDTH, HIDDEN, HEADS).double(), torch.randn(2, 7, WIDTH).double()
    with torch.no_grad():
        for parameter in pooler.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
        w = {name.removeprefix("cross_attention_block."): value for name, value in pooler.state_dict().items()}
        norm = lambda k, y: nnf.layer_norm(y, (WIDTH,), w[f"norm{k}.weight"], w[f"norm{k}.bias"])  # noqa: E731
        dense = lambda k, y: y @ w[f"{k}.weight"].T + w[f"{k}.bias"]  # noqa: E731
        query, seen = w["query_tokens"][0], norm(1, x)
        q, (k, v) = dense("xattn.q", query), dense("xattn.kv", seen).split(WIDTH, dim=-1)
        heads = []
        for h in range(HEADS):
            part = slice(h * WIDTH // HEADS, (h + 1) * WIDTH // HEADS)
            weights = (k[..., part] @ q[0, part] / math.sqrt(WIDTH // HEADS)).softmax(1)
            heads.append((weights[..., None] * v[..., part]).sum(1))
        query = query + dense("xattn.proj", torch.cat(heads, dim=-1))
        expected = query + dense("mlp.fc2", nnf.gelu(dense("mlp.fc1", norm(2, query))))
        torch.testing.assert_close(pooler(x), expected)


def test_v_jepa_reads_its_two_files_as_they_are_published(tmp_path, transformers_model):
    encoder = {k: v for k, v in published_names(transformers_model).items() if k.startswith(("patch", "blocks"))}
    encoder = {k: v for k, v in encoder.items() if not k.endswith("_bias")}
    encoder |= {f"blocks.{i}.attn.qkv.bias": torch.randn(3 * WIDTH) for i in range(DEPTH)}
    tubes = 8 * (224 // PATCH) ** 2
    encoder |= {"norm.weight": torch.rand(WIDTH), "norm.bias": torch.randn(WIDTH)}
    encoder["pos_embed"] = torch.randn(1, tubes, WIDTH)
    probe = Pooler(WIDTH, HIDDEN, HEADS).state_dict()
    (tmp_path / "vjepa").mkdir()
    wrapped = {f"module.backbone.{name}": value for name, value in encoder.items()}
    torch.save({"epoch": 3, "target_encoder": wrapped, "encoder": {}}, tmp_path / "vjepa" / ENCODER)
    head = {f"module.pooler.{name}": value for name, value in probe.items()} | {"module.linear.weight": torch.ones(1)}
    torch.save({"classifier": head}, tmp_path / "vjepa" / PROBE)
    rows = VJepaRows(tmp_path, CPU)
    direct = VJepa(encoder, probe)
    pixels = torch.randint(256, (16, 224, 224, 3), dtype=torch.uint8)
    mean, deviation = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])
    given = ((pixels / 255 - mean) / deviation).movedim(-1, 0)[None]
    torch.testing.assert_close(rows(Clip(pixels)), direct(given), rtol=1e-4, atol=1e-4)
    moved = VJepa(encoder | {"pos_embed": encoder["pos_embed"].flip(1)}, probe)
    assert not torch.allclose(moved(given), direct(given), rtol=1e-3)  # positions count
    (tmp_path / "vjepa" / PROBE).unlink()
    with pytest.raises(UserError, match=f"there is no WEIGHTS/vjepa/{PROBE}"):
        VJepaRows(tmp_path, CPU)


def test_jedi_is_the_authors_formula():
    score = JediScore("jedi", "vjepa")
    a, b = ([torch.randn(1, 6) + shift for _ in range(count)] for count, shift in ((5, 0.0), (4, 0.5)))
    kernel = lambda x, y: torch.tensor([[float(p[0] @ q[0] / 6) ** 2 for q in y] for p in x]).mean()  # noqa: E731
    expected = 100 * float(kernel(a, a) + kernel(b, b) - 2 * kernel(a, b))
    assert score(a, b) == pytest.approx(expected, rel=1e-5) and score(a, a) == pytest.approx(0, abs=1e-9)
    counts = torch.tensor([[2.0, 0, 1, 1, 1], [1, 1, 1, 1, 1]], dtype=torch.float64)
    found = score.of_resamples(a, counts, b, torch.ones(2, 4, dtype=torch.float64))
    repeated = [a[0], a[0], a[2], a[3], a[4]]
    assert found.tolist() == pytest.approx([score(repeated, b), score(a, b)])
