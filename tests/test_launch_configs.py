"""The files in configs/accelerate and configs/deepspeed mean to accelerate and DeepSpeed what their comments say."""

import json
import re
from pathlib import Path

import pytest
import yaml
from accelerate.commands.launch import _validate_launch_command, launch_command_parser
from accelerate.utils import DeepSpeedPlugin
from accelerate.utils.launch import prepare_deepspeed_cmd_env, prepare_multi_gpu_env
from launching import CONFIGS, ROOT

DEEPSPEED = ROOT / "configs" / "deepspeed"
NODES = ("--num_machines", "2", "--machine_rank", "1", "--main_process_ip", "10.0.0.1", "--rdzv_backend", "c10d")


def parse(name: str, *options: str):
    words = ["--config_file", str(CONFIGS / name), "--num_processes", "4", *options, "train.py"]
    return _validate_launch_command(launch_command_parser().parse_args(words))


def test_every_file_is_one_that_these_tests_read():
    names = {path.name for path in CONFIGS.iterdir()}
    zero = {"zero1.yaml", "zero2.yaml", "zero3.yaml", "multi_node_zero.yaml", "multi_node_zero_pdsh.yaml"}
    assert names == zero | {"single.yaml", "ddp.yaml", "fsdp2.yaml", "hsdp.yaml", "multi_node_ddp.yaml"}


@pytest.mark.parametrize("name", [path.name for path in CONFIGS.iterdir()])
def test_nothing_in_a_file_is_ignored(name):
    """accelerate passes over a key of the file where its own option's default is not None."""
    args, _, _ = parse(name)
    for key, value in yaml.safe_load((CONFIGS / name).read_text()).items():
        if key.endswith("_config"):
            assert {k: getattr(args, k) for k in value} == value
        elif key not in ("compute_environment", "distributed_type", "num_processes"):
            assert getattr(args, key) == value, key


@pytest.mark.parametrize(
    ("name", "options", "asked"),
    [
        ("ddp.yaml", (), {"use_deepspeed": False, "use_fsdp": False, "multi_gpu": True}),
        ("fsdp2.yaml", (), {"use_fsdp": True}),
        (
            "hsdp.yaml",
            ("--parallelism_config_dp_shard_size", "2"),
            {"use_fsdp": True, "use_parallelism_config": True, "parallelism_config_dp_shard_size": 2},
        ),
        ("zero3.yaml", (), {"use_deepspeed": True}),
        ("multi_node_ddp.yaml", NODES, {"multi_gpu": True, "rdzv_backend": "c10d", "num_machines": 2}),
        ("zero2.yaml", (*NODES, "--deepspeed_multinode_launcher", "standard"), {"num_machines": 2}),
    ],
)
def test_a_file_asks_for_its_strategy(name, options, asked, monkeypatch):
    args, _, _ = parse(name, *options)
    assert {key: getattr(args, key) for key in asked} == asked
    monkeypatch.setattr("accelerate.utils.launch.is_port_in_use", lambda port: False)
    if name.startswith("zero"):
        args.deepspeed_fields_from_accelerate_config = "deepspeed_config_file"
        command, environment = prepare_deepspeed_cmd_env(args)
        assert command is None, "torch's own launcher, not DeepSpeed's"
        assert environment["ACCELERATE_DEEPSPEED_CONFIG_FILE"] == f"configs/deepspeed/{name.replace('yaml', 'json')}"
    else:
        environment = prepare_multi_gpu_env(args)
    if name == "hsdp.yaml":
        found = {key: environment[f"PARALLELISM_CONFIG_DP_{key}_SIZE"] for key in ("REPLICATE", "SHARD")}
        assert found == {"REPLICATE": "2", "SHARD": "2"} and environment["ACCELERATE_USE_PARALLELISM_CONFIG"] == "true"
    if name in ("fsdp2.yaml", "hsdp.yaml"):
        assert (environment["FSDP_VERSION"], environment["FSDP_CPU_RAM_EFFICIENT_LOADING"]) == ("2", "false")
    if "--num_machines" in options:
        assert (args.rdzv_endpoint, args.nproc_per_node) == ("10.0.0.1:29500", "2")


def test_a_deepspeed_file_on_the_command_line_wins():
    args, _, _ = parse("zero3.yaml", "--deepspeed_config_file", "configs/deepspeed/zero3_offload.json")
    assert args.deepspeed_config_file == "configs/deepspeed/zero3_offload.json"


@pytest.mark.parametrize("path", sorted(DEEPSPEED.iterdir()), ids=lambda path: path.stem)
def test_deepspeed_takes_every_key(path: Path, monkeypatch):
    from deepspeed.runtime.zero.config import get_zero_config

    stage, offload = re.fullmatch(r"zero([123])(_offload)?", path.stem).groups()
    settings = json.loads(path.read_text())
    zero = get_zero_config(settings)  # a key it does not know is an error
    assert zero.stage == int(stage)
    assert (zero.offload_optimizer is not None) == bool(offload)
    assert (zero.offload_param is not None) == (bool(offload) and stage == "3")
    assert "auto" not in path.read_text()  # the trainer gives accelerate no loader to fill it in from
    monkeypatch.setenv("ACCELERATE_CONFIG_DS_FIELDS", "deepspeed_config_file,zero3_init_flag")
    assert DeepSpeedPlugin(hf_ds_config=str(path), zero3_init_flag=False).zero_stage == int(stage)
