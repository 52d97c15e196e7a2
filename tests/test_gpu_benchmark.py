"""benchmarks/gpu.py on any machine: its rows at tiny sizes, and what it makes of rows that fail."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"


@pytest.fixture
def gpu(monkeypatch):
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    import gpu

    return gpu


@pytest.fixture
def rows(gpu):
    import gpu_bench

    return gpu_bench


def measured(gpu, rows, name: str) -> tuple[dict, list[dict]]:
    """The row's figures as they come out of its process, and what it reported on the way."""
    row = next(row for row in gpu.rows(tiny=True) if row.name == name)
    asked = json.loads(json.dumps({"kind": row.kind, "arguments": row.arguments, "tiny": True}))
    reports: list[str] = []
    found = rows.measure(**asked, report=lambda found: reports.append(json.dumps(found)))
    return json.loads(json.dumps(found)), [json.loads(text) for text in reports]


def test_rows_have_names_of_their_own_and_the_goals_come_first(gpu):
    full, tiny = (gpu.rows(flag) for flag in (False, True))
    assert [row.name for row in full] == [row.name for row in tiny]
    names = [row.name for row in full]
    assert len(set(names)) == len(names)
    assert names[:3] == ["attention", "step 1B 32k", "step 1B 32k recompute"]
    for size in gpu.NETWORKS:
        for pack in gpu.PACKS:
            assert any(name.startswith(f"step {size} {pack}") for name in names), (size, pack)
    for row in full:
        if row.kind == "step":
            tokens = sum(f * h * w for f, h, w in row.arguments["grids"])
            pack = row.name.split()[2]
            assert tokens == 1024 * int(pack[:-1]) if pack[:-1].isdigit() else tokens == 32768


def test_networks_have_the_parameters_of_their_names(gpu):
    from latentvid.models.transformer import VideoDiT

    for name, (width, depth, heads) in gpu.NETWORKS.items():
        with torch.device("meta"):
            model = VideoDiT(latent_channels=16, width=width, depth=depth, heads=heads, text_width=4096)
        assert sum(p.numel() for p in model.parameters()) == pytest.approx(float(name[:-1]) * 1e9, rel=0.2)


@pytest.mark.slow
def test_our_step_is_measured_eager_and_compiled(gpu, rows):
    found, reports = measured(gpu, rows, "step 1B mixed")
    assert list(found["ways"]) == ["eager", "compiled"] and found["best"] in found["ways"]
    assert found["tokens"] == 4 * 16 + 2 * 16 + 16 and all("seconds" in way for way in found["ways"].values())
    assert list(reports[0]["ways"]) == ["eager"]  # what a row that is cut short leaves
    text = "\n".join(gpu.lines("step", found))
    assert "eager" in text and "tokens/s" in text and "%" in text


def test_a_frozen_base_is_measured_each_way_it_can_be_held(gpu, rows):
    found, reports = measured(gpu, rows, "held 1B 32k")
    assert list(found["ways"]) == [f"{b}{h}" for b in ("whole", "int8", "nf4") for h in ("", ", on the host")]
    assert all(way["seconds"] > 0 for way in found["ways"].values()) and len(reports) == 6
    assert "nf4, on the host" in "\n".join(gpu.lines("held", found))


def test_a_step_of_sampling_is_measured_eager_and_compiled(gpu, rows, monkeypatch):
    import gpu_sampling

    monkeypatch.setattr(gpu_sampling, "compile_blocks", lambda model, backend: None)  # compiling is not what is tested
    found, reports = measured(gpu, rows, "sampling 1B 32k")
    assert list(found["ways"]) == ["eager, 0 waits a step", "compiled, 0 waits a step"] and len(reports) == 2
    assert all(way["seconds"] > 0 and way["waits"] == 0 for way in found["ways"].values())
    assert "tokens/s" in "\n".join(gpu.lines("sampling", found)) and "attention on cpu by grouped" in found["attention"]


def test_attention_backends_are_compared_and_a_wrong_one_is_seen(gpu, rows, monkeypatch):
    found, _ = measured(gpu, rows, "attention")
    assert found["agree"] and "grouped" in found["backends"]
    assert "DIFFERS" not in "\n".join(gpu.lines("attention", found))
    from latentvid import attention

    right = attention.BACKENDS["grouped"]
    monkeypatch.setitem(attention.BACKENDS, "grouped", lambda q, k, v, *layouts: right(1.5 * q, k, v, *layouts))
    found, _ = measured(gpu, rows, "attention")
    assert not found["agree"] and "DIFFERS" in "\n".join(gpu.lines("attention", found))

    def broken(*_):
        raise RuntimeError("no kernel image")

    monkeypatch.setitem(attention.BACKENDS, "grouped", broken)
    found, _ = measured(gpu, rows, "attention")
    said = "\n".join(gpu.lines("attention", found))
    assert "grouped: FAILS: RuntimeError: no kernel image" in said and "| attention | sdpa |" in said


@pytest.mark.parametrize("name", ["Wan", "LTX", "CogVideoX", "Hunyuan", "Mochi", "Latte"])
def test_peers_make_a_step_of_the_same_tokens(gpu, rows, name):
    from gpu_peers import Shape, blocks_of, make_peer

    shape = Shape(width=48, depth=2, heads=2, grid=(2, 4, 4), clips=2, text=5, text_width=24)
    model, inputs = make_peer(name, shape, torch.device("cpu"))
    model.train().enable_gradient_checkpointing()
    out = model(**inputs, return_dict=False)[0]
    assert out.numel() == shape.tokens * 64 and out.dtype == torch.bfloat16 and len(blocks_of(model)) == 2
    out.float().square().mean().backward()


def test_a_row_that_fails_ends_alone_and_is_named(gpu, monkeypatch, tmp_path, capsys):
    programs = {
        "step 1B 8k": "import json; print(json.dumps({'failed': 'out of memory'}))",
        "step 3B 8k": "raise ValueError('no such thing')",
        "step 0.4B 8k": 'print(\'{"encode": {"seconds": 1, "frames_per_s": 2, "of_matmul": 0.5}}\')',
    }
    monkeypatch.setattr(gpu, "command", lambda row, tiny: [sys.executable, "-c", programs[row.name]])
    monkeypatch.setattr(gpu, "machine", lambda: {"device": "one", "torch": "2"})
    file = tmp_path / "rows.json"
    monkeypatch.setattr(sys, "argv", ["gpu.py", "--tiny", "--only", *programs, "--json", str(file)])
    gpu.main()
    said = capsys.readouterr().out
    assert "| step 1B 8k | out of memory |" in said and "ValueError: no such thing" in said and "50.0%" in said
    assert set(json.loads(file.read_text())["rows"]) == set(programs)
    programs["step 1B 8k"] = "raise SystemExit('run again')"
    gpu.main()
    said = capsys.readouterr().out
    assert "out of memory" in said and "run again" not in said  # known; what failed otherwise was run again
    monkeypatch.setattr(gpu, "machine", lambda: {"device": "other", "torch": "2"})
    with pytest.raises(SystemExit, match="name another file"):
        gpu.main()


def test_what_there_is_no_time_for_is_listed(gpu, monkeypatch, capsys):
    slow = 'import time; print(\'{"encode": {"seconds": 1, "frames_per_s": 2, "of_matmul": 0.5}}\', flush=True)'
    monkeypatch.setattr(gpu, "command", lambda row, tiny: [sys.executable, "-c", f"{slow}; time.sleep(60)"])
    monkeypatch.setattr(gpu, "machine", lambda: {"device": "one", "torch": "2"})
    monkeypatch.setattr(gpu, "LONGEST", 1.5)
    monkeypatch.setattr(gpu, "LEAST", 2.0)
    monkeypatch.setattr(sys, "argv", ["gpu.py", "--minutes", "0.05", "--only", "vae 4x8x8"])
    gpu.main()
    said = capsys.readouterr().out
    assert "vae 4x8x8 17 x 720 x 1280 | encode" in said  # what it had
    assert "left out" in said and "vae 4x8x8 129 x 720 x 1280" in said and "not done within" in said


@pytest.mark.slow
def test_rows_without_their_packages_say_so_and_the_others_go_on(gpu, monkeypatch, tmp_path, capsys):
    monkeypatch.setitem(gpu.NEEDS, "vae", ("torch", "not_there", "nor_this"))
    one = 'print(\'{"encode": {"seconds": 1, "frames_per_s": 2, "of_matmul": 0.5}}\')'
    monkeypatch.setattr(gpu, "command", lambda row, tiny: [sys.executable, "-c", one])
    file = tmp_path / "rows.json"
    monkeypatch.setattr(sys, "argv", ["gpu.py", "--only", "vae 4x8x8 17", "step 1B 8k", "--json", str(file)])
    gpu.main()
    said = capsys.readouterr().out
    assert "| vae 4x8x8 17 x 720 x 1280 | packages that are not there: not_there, nor_this |" in said
    assert "| step 1B 8k | encode |" in said
    monkeypatch.setitem(gpu.NEEDS, "vae", ("torch",))
    gpu.main()
    assert "not there" not in capsys.readouterr().out  # with them it is run


def test_the_attention_row_needs_no_package_of_models(gpu):
    code = "import sys, gpu_attention; print([n for n in sys.argv[1:] if n in sys.modules])"
    others = sorted(set(gpu.MODELS) - set(gpu.BARE) - {"psutil", "yaml"})
    path = os.pathsep.join([str(BENCHMARKS), str(BENCHMARKS.parent)])
    done = subprocess.run(
        [sys.executable, "-c", code, *others], env=os.environ | {"PYTHONPATH": path}, capture_output=True, text=True
    )
    assert done.stdout.strip() == "[]", done.stderr


def test_unknown_rows_are_named(gpu, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["gpu.py", "--only", "nothing"])
    with pytest.raises(SystemExit):
        gpu.main()
    assert "no row's name holds nothing" in capsys.readouterr().err
