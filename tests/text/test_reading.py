"""How prompts are read: what is unknown, too long, mended, quoted; where encoders are; what a fingerprint covers."""

from __future__ import annotations

import hashlib
import json
from types import SimpleNamespace

import pytest
import text_models as small
import torch
from text_models import PROMPTS

import latentvid.text.prompts
from latentvid.text import PackedText, TextEncoder, TextError, TextReader
from latentvid.text.part import TextPart
from latentvid.text.policy import Reading
from latentvid.text.prompts import said

T5 = small.t5(), small.unigram()


def reader(**reading) -> TextReader:
    return TextReader([TextPart(*T5, Reading(tokens=40, **reading))])


def two_more(**more) -> TextReader:
    """Of three encoders."""
    clip, letters = small.clip_tokenizer(), small.byte_tokenizer()
    return TextReader(
        [
            TextPart(*T5, Reading(tokens=99)),
            TextPart(small.clip(clip), clip, Reading(tokens=77, gives="pooled", cut=True)),
            TextPart(small.t5(len(letters), 8), letters, Reading(tokens=24, gives="second", takes="quoted", cut=True)),
        ],
        **more,
    )


@pytest.mark.parametrize("template", [None, "tell of: {} and end"])
@pytest.mark.parametrize("clean", ["none", "strip"])
def test_unknown_characters_are_counted_and_named_in_any_template(template, clean):
    crop = 0 if template is None else len(T5[1]("tell of:")["input_ids"]) - 1
    some = reader(template=template, crop=crop, clean=clean)
    prompts = ["红色 的球", " a 球 man", "a man"]
    one, two, three = some.fits(prompts)
    assert (one.unknown, one.share) == ("红色的球", 1.0)
    assert (two.unknown, two.share) == ("球", 0.2)
    assert (three.unknown, three.share) == ("", 0.0)
    assert [one.tokens, two.tokens, three.tokens] == [
        len(ids) for ids in some.tokenize(["红色 的球", " a 球 man", "a man"])
    ]
    with pytest.raises(TextError, match="knows no character of the prompt '红色 的球'.*write it in a language"):
        some.check(["a man", "红色 的球"])


def test_too_long_a_prompt_is_refused_but_where_its_beginning_is_meant(caplog):
    long = "a man walks " * 40
    with pytest.raises(TextError, match=r"prompt of \d+ tokens is longer than the text encoder's 40; shorten it"):
        reader().encode([long])
    short = reader().shortened(long)
    assert long.startswith(short) and 30 < len(reader().tokenize([short])[0]) <= 40
    cut = reader(cut=True)
    (ids,) = cut.tokenize([long])
    assert len(ids) == 40 and ids[-1] == T5[1].eos_token_id
    with caplog.at_level("WARNING"):
        cut.check([long])
    assert "reads the first 40 of" in caplog.text
    with pytest.raises(TextError, match=r"prompt 'a \\udcff' is not UTF-8 text"):
        reader().encode(["a \udcff"])


def test_prompts_are_mended_as_wan_does(monkeypatch):
    mend = Reading(tokens=9, clean="mend")
    assert said(" a &amp;lt;b&amp;gt;\t\n c ", mend) == "a <b> c" and said(" \n", mend) == ""
    if latentvid.text.prompts.ftfy is None:
        with pytest.raises(TextError, match=r"prompt '红，' has letters outside ASCII.*pip install ftfy"):
            said("红，", mend)
    monkeypatch.setattr(latentvid.text.prompts, "ftfy", SimpleNamespace(fix_text=lambda text: text.replace("，", ",")))
    assert said(" 红， ", mend) == "红,"


def test_quoted_texts_are_read_once_each():
    quoted = Reading(tokens=9, takes="quoted")
    assert said('"go" and “stop”, then "go"', quoted) == 'Text "go". Text "stop". '
    assert said("go", quoted) is None and said('an "open', quoted) is None


def test_an_empty_prompt_may_be_a_blank_or_nothing():
    assert said("", Reading(tokens=9, empty=" ")) == " " and said("", Reading(tokens=9, empty=None)) is None
    none = reader(empty=None)
    assert none.encode(["", "a man"]).lengths == [0, len(none.tokenize(["a man"])[0])]
    zero = reader(empty=None, pad="zero")
    assert zero.encode([""]).states.shape == (40, 16) and not zero.encode([""]).states.any()
    assert none.encode([]).states.shape == (0, 16)


def test_each_prompt_alone_is_what_it_is_among_others():
    text = two_more().encode(PROMPTS)
    assert text.pooled.shape == (4, 12) and text.second_lengths == [24, 0, 0, 0]
    for prompt, part in zip(PROMPTS, text.each(), strict=True):
        alone = two_more().encode([prompt])
        assert (part.lengths, part.second_lengths) == (alone.lengths, alone.second_lengths)
        for name in ("states", "pooled", "second"):
            torch.testing.assert_close(getattr(part, name), getattr(alone, name), rtol=0, atol=1e-5)
    (one,) = PackedText(torch.ones(2, 3), [2]).each()
    assert one.pooled is None and one.second is None and one.second_lengths is None


def test_encoders_come_to_the_device_one_after_another_and_leave_it(monkeypatch):
    wanted, moves = two_more().encode(PROMPTS), []
    for kind in (type(T5[0]), small.CLIPTextModel):
        monkeypatch.setattr(kind, "to", lambda self, to: moves.append((self.config.hidden_size, str(to))))
    away = two_more(place="offload").to("meta")
    assert not moves and away.device.type == "meta"
    states = away.encode(PROMPTS)
    assert moves == [(w, to) for w in (16, 12, 8) for to in ("meta", "cpu")]
    assert states.states.device.type == states.pooled.device.type == "meta"
    moves.clear()
    here = two_more(place="cpu").to("cpu")
    assert torch.equal(here.encode(PROMPTS).states, wanted.states) and not moves
    two_more().to("meta")
    assert moves == [(w, "meta") for w in (16, 12, 8)]
    with pytest.raises(TextError, match="place of text encoders 'disk': must be device, offload or cpu"):
        two_more(place="disk")
    with pytest.raises(TextError, match="quantization bitsandbytes-4bit stay on the device"):
        two_more(place="cpu", quantization="bitsandbytes-4bit")


def test_a_fingerprint_covers_all_encoders_and_how_they_are_read():
    made = two_more()
    first = made.fingerprint()
    made.encode(PROMPTS)  # changes what tokenizers remember of the last call
    assert made.fingerprint() == first
    with torch.no_grad():
        made.second.encoder.shared.weight[3, 3] += 1e-3
    assert made.fingerprint() != first
    policies = [dict(), dict(pad="zero"), dict(pad="seen"), dict(clean="strip"), dict(cut=True), dict(empty=" ")]
    assert len({reader(**policy).fingerprint() for policy in policies}) == len(policies)
    assert reader(part="text_encoder_2", tokenizer="words").fingerprint() == reader().fingerprint()


def test_the_fingerprint_of_an_encoder_alone_is_that_of_caches_of_before():
    encoder, tokenizer = T5
    digest = hashlib.sha256()
    for name, p in sorted(encoder.named_parameters()):
        digest.update(f"{name} {p.dtype} {tuple(p.shape)}".encode() + p.detach().numpy().tobytes())
    keys = ("num_heads", "relative_attention_num_buckets", "relative_attention_max_distance", "layer_norm_epsilon")
    config = {key: getattr(encoder.config, key) for key in (*keys, "feed_forward_proj")}
    words = json.loads(tokenizer.backend_tokenizer.to_str())
    words = {key: value for key, value in words.items() if key not in ("padding", "truncation")}
    digest.update(json.dumps([config, words], sort_keys=True).encode())
    assert TextEncoder(encoder, tokenizer).fingerprint() == digest.hexdigest()


def test_states_have_the_type_of_the_weights():
    half = TextReader([TextPart(small.t5().to(torch.bfloat16), T5[1], Reading(tokens=40))])
    states = half.encode(["two cats"]).states
    assert states.dtype == torch.bfloat16
    torch.testing.assert_close(states.float(), reader().encode(["two cats"]).states, rtol=0.05, atol=0.1)
