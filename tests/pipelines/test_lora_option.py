"""`--lora FILE[:SCALE]`: what it says, and that a pipeline of our own has it."""

import argparse

import pytest
import torch
from accelerate import PartialState
from peft import LoraConfig, inject_adapter_in_model

from latentvid.errors import UserError
from latentvid.models.adapters.lora import adapters_in, save_lora
from latentvid.models.saved import load_component
from latentvid.models.transformer import VideoDiT
from latentvid.pipelines.arguments import Lora, parser_of, read_lora
from latentvid.pipelines.loading import load_pipeline
from latentvid.pipelines.prompts import Row, sample_prompts
from latentvid.pipelines.sampling import Sampling


def test_a_file_and_how_much_of_it(tmp_path):
    assert [(str(f), s) for f, s in map(read_lora, ("a.safetensors", "a.safetensors:0.5", "b:c:-1"))] == [
        ("a.safetensors", 1.0),
        ("a.safetensors", 0.5),
        ("b:c", -1.0),
    ]
    odd = tmp_path / "x:2"
    odd.mkdir()
    assert read_lora(str(odd)) == (odd, 1.0)
    for wrong, said in (
        (":1", "give FILE or FILE:SCALE"),
        ("", "give FILE or FILE:SCALE"),
        *((f"a:{scale}", f"a:{scale}: there is no such file, and the scale") for scale in ("b", "", "nan", "1e9")),
        ("x" * 5000 + ":b", "there is no such file"),  # a name that no disk takes
    ):
        with pytest.raises(argparse.ArgumentTypeError, match=said):
            read_lora(wrong)
    args = parser_of("").parse_args(["--lora", "a", "--lora", "b:2", "--lora-2", "c"])
    assert [str(lora.file) for lora in args.lora] == ["a", "b"] and args.lora_2[0].scale == 1.0


@pytest.mark.usefixtures("fresh_accelerate")
def test_a_pipeline_of_ours_has_it(tiny_pipeline, tmp_path, capsys):
    dit = load_component(VideoDiT, tiny_pipeline / "transformer")
    inject_adapter_in_model(LoraConfig(r=2, lora_alpha=4, target_modules=["query", "fc2"]), dit)
    with torch.no_grad():
        for name, p in dit.named_parameters():
            if "lora_" in name:
                p.normal_()
    file = save_lora(dit, tmp_path)
    asked = {scale: [Lora(file, scale)] for scale in (0.0, 1.0)}
    sampling = Sampling(steps=2, progress=False)
    plain, none, much = (
        load_pipeline(tiny_pipeline, "cpu", lora=lora)(
            "a red 7", seed=1, sampling=sampling, output_type="uint8"
        ).frames[0]
        for lora in ((), asked[0.0], asked[1.0])
    )
    torch.testing.assert_close(none, plain, rtol=0, atol=1e-5)
    assert (much - plain).abs().max() > 1e-3 and f"LoRA {file} times 1" in capsys.readouterr().err
    with pytest.raises(UserError, match="--lora-2.*one network"):
        load_pipeline(tiny_pipeline, "cpu", lora_2=asked[1.0])
    assert adapters_in(load_pipeline(tiny_pipeline, "cpu", lora=[Lora(tmp_path, 0.5)] * 2).transformer) == [
        "pytorch_lora_weights",
        "pytorch_lora_weights_2",
    ]
    rows = [Row(file="x.png", prompt="a red 7", negative_prompt="", seed=1, frames=1, height=16, width=16, fps=8.0)]
    words = rows, tmp_path / "made", Sampling(steps=1, progress=False), PartialState()
    sample_prompts(load_pipeline(tiny_pipeline, "cpu", lora=[Lora(file, 0.5)]), *words)
    with pytest.raises(UserError, match="x.png is there already, but made with another model"):
        sample_prompts(load_pipeline(tiny_pipeline, "cpu", lora=[Lora(file, 0.25)]), *words)
