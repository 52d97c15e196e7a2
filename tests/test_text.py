"""Text encoders: packed equals alone, nothing cut in silence, clear refusals, and the demo's encoder from nothing."""

import json
import runpy
import shutil
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

import latentvid.text.folder
import latentvid.text.part
from latentvid.demo.digits import COLOURS, DIRECTIONS, VERBS, Label, caption
from latentvid.demo.text_encoder import build_encoder, build_tokenizer, paraphrase_match, train_text_encoder
from latentvid.errors import UserError
from latentvid.text import TextEncoder, TextError

SCRIPT = Path(__file__).parents[1] / "train" / "train_text_encoder.py"
PROMPTS = ["a red 7 moves left", "", "a blue three bounces down and to the right", "7 " * 40, "a red 7 moves right"]


def labels(n: int) -> list[Label]:
    rng = np.random.default_rng(0)
    pick = lambda of: list(of)[rng.integers(len(of))]  # noqa: E731
    return [Label(int(rng.integers(10)), pick(COLOURS), pick(VERBS), pick(DIRECTIONS)) for _ in range(n)]


@pytest.fixture(scope="module")
def saved(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("t5")
    rng = np.random.default_rng(0)
    tokenizer = build_tokenizer([caption(label, rng) for label in labels(100)])
    build_encoder(len(tokenizer), seed=0, width=16, layers=2).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def encoder(saved) -> TextEncoder:
    return TextEncoder.from_pretrained(saved)


@pytest.fixture
def copy(saved, tmp_path) -> Path:
    return Path(shutil.copytree(saved, tmp_path / "copy"))


@pytest.mark.parametrize("batch_tokens", [1, 30, 4096])
def test_packed_equals_each_alone(encoder, monkeypatch, batch_tokens):
    monkeypatch.setattr(latentvid.text.part, "BATCH_TOKENS", batch_tokens)
    packed = encoder.encode(PROMPTS)
    assert packed.states.shape == (sum(packed.lengths), encoder.dim) and packed.states.dtype == torch.float32
    for prompt, states in zip(PROMPTS, packed.split(), strict=True):
        torch.testing.assert_close(states, encoder.encode([prompt]).states, atol=1e-5, rtol=0)


def test_every_prompt_is_in_one_batch_within_the_budget(monkeypatch):
    monkeypatch.setattr(latentvid.text.part, "BATCH_TOKENS", 64)
    lengths = np.random.default_rng(0).integers(1, 80, size=200).tolist()
    batches = latentvid.text.part._batches(lengths)
    assert sorted(i for b in batches for i in b) == list(range(200))
    assert all(len(b) == 1 or len(b) * max(lengths[i] for i in b) <= 64 for b in batches)


def test_empty_prompt_is_one_token_and_no_prompts_are_none(encoder):
    assert encoder.tokenize([""]) == [[encoder.tokenizer.eos_token_id]]
    assert encoder.encode([]).states.shape == (0, 16) and encoder.encode([]).lengths == []


def test_word_order_reaches_the_token_states(encoder):
    left, right = encoder.encode(["a red 7 moves left", "a red 7 moves right"]).split()
    assert left.shape == right.shape and not torch.allclose(left[1], right[1], atol=1e-4)


def test_frozen_and_untouched_by_autocast(encoder):
    plain = encoder.encode(PROMPTS).states
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(encoder.encode(PROMPTS).states, plain)
    assert not plain.requires_grad and not encoder.encoder.training
    assert not any(p.requires_grad for p in encoder.encoder.parameters())


def test_too_long_a_prompt_is_refused_not_cut(encoder):
    limit = encoder.max_tokens
    assert encoder.encode(["7" + " 7" * (limit - 2)]).lengths == [limit]
    with pytest.raises(
        TextError, match=rf"prompt of {limit + 1} tokens is longer than .* {limit}; shorten it: 'red red"
    ):
        encoder.encode(["a red 7", " ".join(["red"] * limit)])


def test_what_is_no_text_is_refused(encoder):
    with pytest.raises(UserError, match=r"prompt 'a \\udcff' is not UTF-8 text"):
        encoder.tokenize(["a \udcff"])


@pytest.mark.parametrize(
    ("file", "text", "message"),
    [
        ("tokenizer_config.json", '{"model_max_length": -5}', r"tokenizer_config.json: model_max_length=-5: must be"),
        ("tokenizer_config.json", '{"model_max_length": true}', r"tokenizer_config.json: model_max_length=True"),
        ("tokenizer.json", '{"merges": -1}', r"tokenizer in .*tokenizer.json.* cannot be loaded"),
    ],
)
def test_a_broken_tokenizer_is_named(copy, file, text, message):
    (copy / file).write_text(text)
    with pytest.raises(UserError, match=message):
        TextEncoder.from_pretrained(copy)


def test_any_text_survives_the_tokenizer(encoder):
    text = "naïve 7 左へ動く 😀 \t{x}"
    ids = encoder.tokenize([text])[0]
    assert encoder.tokenizer.unk_token_id not in ids
    assert encoder.tokenizer.decode(ids, skip_special_tokens=True).strip() == text
    assert encoder.tokenize(["A Red 7"]) == encoder.tokenize(["a red 7"])


def test_fingerprint_follows_weights_and_tokenizer_only(encoder, copy):
    first = encoder.fingerprint()
    encoder.tokenizer(PROMPTS, padding=True, truncation=True)  # changes the tokenizer's own state, not its tokens
    assert encoder.fingerprint() == first == TextEncoder.from_pretrained(copy).fingerprint()
    state = load_file(copy / "model.safetensors")
    state["encoder.final_layer_norm.weight"][3] += 1e-3
    save_file(state, copy / "model.safetensors", metadata={"format": "pt"})
    weights = TextEncoder.from_pretrained(copy)
    assert weights.fingerprint() != first
    other = TextEncoder(encoder.encoder, build_tokenizer(["a red 7"]))
    assert other.fingerprint() != first


@pytest.mark.parametrize(
    ("file", "message"),
    [
        ("config.json", "has no config.json"),
        ("model.safetensors", r"has no weights \(model.safetensors\)"),
        ("tokenizer.json", r"has no tokenizer \(tokenizer.json or spiece.model\)"),
    ],
)
def test_an_incomplete_folder_says_what_is_missing(copy, file, message):
    (copy / file).unlink()
    with pytest.raises(UserError, match=message):
        TextEncoder.from_pretrained(copy)


def test_weights_that_lack_tensors_or_are_pickled_are_refused(copy):
    state = load_file(copy / "model.safetensors")
    del state["encoder.block.1.layer.0.SelfAttention.k.weight"]
    save_file(state, copy / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(UserError, match=r"1 missing \(encoder.block.1.layer.0.SelfAttention.k.weight\)"):
        TextEncoder.from_pretrained(copy)
    (copy / "model.safetensors").write_bytes(b"")
    with pytest.raises(UserError, match="model.safetensors cannot be loaded"):
        TextEncoder.from_pretrained(copy)
    (copy / "model.safetensors").rename(copy / "pytorch_model.bin")
    with pytest.raises(UserError, match="pytorch_model.bin can hold code .* convert it to safetensors"):
        TextEncoder.from_pretrained(copy)


def test_a_missing_folder_is_told_at_once(tmp_path, monkeypatch):
    monkeypatch.setattr(latentvid.text.folder, "HfApi", lambda: pytest.fail("asked the network"))
    for name in (tmp_path / "none", "runs/demo/none", "./none", f"{SCRIPT.parent.name}/none", "-1/none"):
        with pytest.raises(TextError, match="none does not exist: give a transformers T5 folder or a hub name"):
            TextEncoder.from_pretrained(name)


def test_an_unreachable_hub_is_one_message(monkeypatch):
    class Hub:
        def model_info(self, name: str, timeout: float) -> None:
            raise ConnectionError("name not known")

    monkeypatch.setattr(latentvid.text.folder, "HfApi", Hub)
    with pytest.raises(TextError, match=r"someone/no-such-t5 is neither a folder nor .*\(name not known\)"):
        TextEncoder.from_pretrained("someone/no-such-t5")
    with pytest.raises(TextError, match=r"text encoder 3- is neither a folder nor"):  # no name of the hub
        TextEncoder.from_pretrained("3-")


def test_a_tokenizer_of_another_model_is_refused(encoder):
    with pytest.raises(TextError, match="take both from the same model"):
        TextEncoder(build_encoder(8, seed=0, width=16, layers=1), encoder.tokenizer)


def test_training_joins_wordings_and_repeats_exactly():
    some = labels(200)
    trained, again = (train_text_encoder(some, steps=50, batch=16) for _ in range(2))
    assert trained.fingerprint() == again.fingerprint()

    def gap(encoder: TextEncoder) -> float:
        """How much nearer a numeral's token state lies to its word's than to another digit's word's (cosines)."""
        states = encoder.encode(["a red 7", "a red seven", "a red 3", "a red three"]).split()
        seven, word, three, other = (states[i][2] - torch.stack([s[2] for s in states]).mean(0) for i in range(4))
        near, far = torch.cosine_similarity(seven, word, dim=0), torch.cosine_similarity(seven, other, dim=0)
        return (near - far).item()

    raw = TextEncoder(build_encoder(len(trained.tokenizer), seed=0), trained.tokenizer)
    assert gap(trained) > 0.2 > gap(raw) and paraphrase_match(trained, some, 0) > 0.9


def test_script_saves_a_folder_that_loads(tmp_path, capsys):
    rng = np.random.default_rng(0)
    rows = [{"caption": caption(label, rng), **asdict(label)} for label in [*labels(40), Label(3, "red")]]
    (tmp_path / "train.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    main = runpy.run_path(str(SCRIPT))["main"]
    main([str(tmp_path / "t5"), "--captions", str(tmp_path / "train.jsonl"), "--steps", "2"])
    assert "paraphrases matched" in capsys.readouterr().out
    assert TextEncoder.from_pretrained(tmp_path / "t5").encode(["a red 7"]).lengths == [4]
    with pytest.raises(SystemExit) as stop:
        main([str(tmp_path / "t5"), "--captions", str(tmp_path / "none.jsonl")])
    assert stop.value.code == 2 and "none.jsonl does not exist" in capsys.readouterr().err
    (tmp_path / "bad.jsonl").write_text('{"caption": "a cat"}\n')
    with pytest.raises(SystemExit):
        main([str(tmp_path / "t5"), "--captions", str(tmp_path / "bad.jsonl")])
    assert "bad.jsonl line 1 is no row of the demo's manifest" in capsys.readouterr().err
