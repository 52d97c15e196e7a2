"""Captions that the text encoder cannot take: left out, cut, counted, or refused, before anything is encoded."""

import json
import logging

import pytest
import torch

from latentvid.config.parsing import load_config
from latentvid.config.schema import CaptionRules, DitConfig
from latentvid.config.yaml_files import ConfigError
from latentvid.data.manifest.manifest import Manifest, Sample
from latentvid.errors import UserError
from latentvid.text import TextEncoder, TextError
from latentvid.training.stages.dit.captions import check_captions
from latentvid.training.stages.dit.task import DitTask

LONG = "a red 7 moves up and to the left and then " * 9


@pytest.fixture(scope="module")
def text(tiny_t5, tmp_path_factory) -> TextEncoder:
    """A T5 whose tokenizer, as flan-t5's does, has one token for whatever it does not know."""
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    pieces = ["<pad>", "</s>", "<unk>", "\u2581", *(f"\u2581{w}" for w in LONG.split()), *"abcdefghijklmnopqrstuvwxyz"]
    vocabulary = [(piece, -float(i)) for i, piece in enumerate(dict.fromkeys(pieces))]
    tokenizer = Tokenizer(models.Unigram(vocabulary, unk_id=2))
    tokenizer.normalizer = normalizers.NFKC()
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer.post_processor = processors.TemplateProcessing(single="$A </s>", special_tokens=[("</s>", 1)])
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, unk_token="<unk>", eos_token="</s>", pad_token="<pad>", model_max_length=24
    )
    return TextEncoder(TextEncoder.from_pretrained(tiny_t5).encoder, fast)


def manifest(*captions: str | tuple[str, ...]) -> Manifest:
    return Manifest.of("m.jsonl", [Sample(f"/c/{i}.mp4", c, 9, 8.0, 32, 32) for i, c in enumerate(captions)])


def test_a_clip_of_several_captions_keeps_those_that_can_be_taken(text):
    given = manifest(("a red 7", LONG, "a 7"), (LONG, LONG), "a red 7", ("一只狐狸", "a red 7"), ("一只狐狸", "一只猫"))
    allowed = CaptionRules(unknown_share=0.5)
    found = check_captions(given, text, allowed)
    assert [s.caption for s in found.samples] == [
        ("a red 7", "a 7"),
        "a red 7",
        ("一只狐狸", "a red 7"),
        ("一只狐狸", "一只猫"),
    ]
    assert list(found.dropped) == [("/c/1.mp4", "caption-too-long")] and found.unknown == 1
    assert "1 captions left out of clips that have others" in found.summary()
    assert "3 of 10 captions are unknown" in found.summary()
    cut = check_captions(given, text, CaptionRules(too_long="truncate", unknown_share=0.5))
    assert len(cut.samples) == 5 and LONG.startswith(cut.samples[0].caption[1]) and cut.samples[0].caption[1] != LONG
    held_out = check_captions(given, text, allowed, drop_unknown=True)
    assert [s.caption for s in held_out.samples][-1] == "a red 7" and held_out.unknown == 0
    with pytest.raises(UserError, match="3 of 10 captions are unknown"):
        check_captions(given, text, CaptionRules(unknown_share=0.2))


def test_dropout_has_one_name_and_older_configurations_another(tmp_path):
    needed = ["run.dir=r", "data.latents=c", "vae=v", "text_encoder=t"]
    (tmp_path / "base.yaml").write_text("data: {caption_dropout: 0.3, max_frames: 9}")
    (tmp_path / "new.yaml").write_text("base: base.yaml\ncaption: {dropout: 0.2}")
    (tmp_path / "both.yaml").write_text("data: {caption_dropout: 0.3}\ncaption: {dropout: 0.2}")
    assert load_config(DitConfig, tmp_path / "base.yaml", needed).caption.dropout == 0.3
    assert load_config(DitConfig, tmp_path / "new.yaml", needed).caption.dropout == 0.2
    for key in ("caption.dropout", "data.caption_dropout"):
        assert load_config(DitConfig, tmp_path / "base.yaml", [*needed, f"{key}=0.5"]).caption.dropout == 0.5
    with pytest.raises(ConfigError, match="data.caption_dropout is the old name of caption.dropout"):
        load_config(DitConfig, tmp_path / "both.yaml", needed)


def test_fits_count_tokens_and_the_characters_that_no_token_stands_for(text):
    prompts = ["a red 7", "一只 狐狸", "a 狐 b", "", LONG]
    fits = list(text.fits(prompts))
    assert [fit.tokens for fit in fits] == [len(ids) for ids in text.tokenizer(prompts)["input_ids"]]
    assert [fit.unknown for fit in fits] == ["", "一只狐狸", "狐", "", ""]
    assert [round(fit.share, 2) for fit in fits] == [0, 1, 0.33, 0, 0]
    states = text.encode(["一只红色的狐狸", "一只蓝色的猫"]).split()
    assert torch.equal(*states)  # what makes such captions useless


def test_long_captions_are_left_out_by_reason_or_cut_where_a_word_ends(text):
    given = manifest("a red 7", LONG, "x" * 100)
    dropped = check_captions(given, text, CaptionRules())
    assert [s.caption for s in dropped.samples] == ["a red 7"]
    assert list(dropped.dropped) == [("/c/1.mp4", "caption-too-long"), ("/c/2.mp4", "caption-too-long")]
    cut = check_captions(given, text, CaptionRules(too_long="truncate"))
    captions = [s.caption for s in cut.samples]
    assert captions[0] == "a red 7" and not cut.dropped and "2 captions too long" in cut.summary()
    for short, long in zip(captions[1:], (LONG, "x" * 100), strict=True):
        assert long.startswith(short) and 20 < next(text.fits([short])).tokens <= 24
    assert captions[1].split() == LONG.split()[: len(captions[1].split())]


def test_unknown_captions_are_named_and_refused_above_a_share(text):
    given = manifest(*["a red 7"] * 8, "红色的狐狸", "猫 a red")
    found = check_captions(given, text, CaptionRules())
    assert len(found.samples) == 10 and found.unknown == 1
    assert "1 of 10 captions are unknown" in found.summary() and "/c/8.mp4: '红色的狐狸'" in found.summary()
    assert "1 captions have characters" in found.summary() and "such as 猫 (/c/9.mp4" in found.summary()
    assert "(caption-unknown): /c/8.mp4" in check_captions(given, text, CaptionRules(), drop_unknown=True).summary()
    with pytest.raises(UserError, match=r"(?s)m.jsonl: 1 of 10 .*/c/8.mp4.*allow it with caption.unknown_share=0.1"):
        check_captions(given, text, CaptionRules(unknown_share=0.05))
    assert check_captions(manifest("狐狸", "猫"), text, CaptionRules(unknown_share=1)).unknown == 2


def test_prompts_that_mean_nothing_are_refused_and_those_in_part_warned_of(text, caplog):
    with pytest.raises(TextError, match="knows no character of the prompt '红色的狐狸'"):
        text.check(["a red 7", "红色的狐狸"])
    with pytest.raises(TextError, match="longer than the text encoder's 24"):
        text.check([LONG])
    with caplog.at_level(logging.WARNING):
        text.check(["a red 7 🦊", "", "a red 7"])
    assert [record.getMessage() for record in caplog.records] == [
        "the text encoder does not know '🦊' in the prompt 'a red 7 🦊': it reads the rest"
    ]


def test_online_training_leaves_long_captions_out_in_validation_too(dit_config, digits_data, tmp_path):
    rows = [json.loads(line) for line in (digits_data / "train.jsonl").read_text().splitlines()][:6]
    for row in rows:
        row["path"] = str(digits_data / row["path"])
    rows[2]["caption"] = rows[5]["caption"] = LONG
    table = tmp_path / "long.jsonl"
    table.write_text("".join(json.dumps(row) + "\n" for row in rows))
    online = ("data.latents=null", f"data.manifest={table}", "validation.every=1", f"validation.manifest={table}")
    task = DitTask(dit_config(tmp_path, *online), torch.device("cpu"))
    assert "dropped 2 (caption-too-long)" in task.summary() and f"{rows[2]['path']}, row 3" in task.summary()
    assert "dropped 2 (caption-too-long)" in task.held_out().summary()
    cut = DitTask(dit_config(tmp_path, *online, "caption.too_long=truncate"), torch.device("cpu"))
    assert len(cut.source) == 6 and "2 captions too long for the text encoder: cut" in cut.summary()
    with pytest.raises(UserError, match="samples.prompts: .*longer than"):
        DitTask(dit_config(tmp_path, *online, f"samples.prompts=[{LONG}]"), torch.device("cpu"))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["data.manifest=new.jsonl"], r"(?s)data.*manifest is set, but so is latents.*--data.latents=null"),
        (["data.flip=true"], "flip is set, but so is latents"),
        (["validation.manifest=a", "validation.latents=b"], "validation.*manifest and latents are both set"),
        (["caption.unknown_share=1.5"], "unknown_share=1.5"),
    ],
)
def test_options_of_which_one_would_be_ignored_are_refused(options, message):
    base = ["run.dir=r", "vae=v", "text_encoder=t", "data.latents=old"]
    with pytest.raises(ConfigError, match=message):
        load_config(DitConfig, None, [*base, *options])
    load_config(DitConfig, None, [*base, "data.latents=null", "data.manifest=new.jsonl", "data.flip=true"])
