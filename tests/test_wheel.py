"""The wheel holds the package with its data, and nothing else."""

import os
import shutil
import subprocess
import sys
import sysconfig
import venv
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
# what could find its way into a wheel by mistake
KEPT = (".py", ".toml", ".md", ".safetensors", ".html", ".css", ".yaml", ".txt", ".json", ".sbatch")
DATA = {"latentvid/page.css", "latentvid/demo/judge.safetensors", "latentvid/evaluation/preference/page.html"}
CONFIGS = {f"latentvid/{path.relative_to(ROOT).as_posix()}" for path in (ROOT / "configs").rglob("*.*")}


def unwanted(folder: str, names: list[str]) -> list[str]:
    """Of a copy of the tree: environments, outputs, and files that are no sources."""
    return [
        name
        for name in names
        if name in ("runs", "build", "dist", "__pycache__") or name.startswith(".") or name.endswith(".egg-info")
        if not name.startswith("LICENSE")
    ] + [name for name in names if (Path(folder) / name).is_file() and not name.endswith(KEPT) and name != "LICENSE"]


@pytest.fixture(scope="module")
def wheel(tmp_path_factory) -> Path:
    """The wheel of a copy of the tree."""
    tmp_path = tmp_path_factory.mktemp("wheel")
    tree, out = tmp_path / "tree", tmp_path / "out"
    shutil.copytree(ROOT, tree, ignore=unwanted, symlinks=True)
    # offline: the backend is the one of this environment
    command = [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", str(out), str(tree)]
    run = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert run.returncode == 0, run.stdout + run.stderr
    (wheel,) = out.glob("*.whl")
    return wheel


def test_the_wheel_holds_only_the_package(wheel):
    names = set(zipfile.ZipFile(wheel).namelist())
    info = {name for name in names if name.split("/")[0].endswith(".dist-info")}
    sources = {path.relative_to(ROOT).as_posix() for path in (ROOT / "latentvid").rglob("*.py")}
    assert names - info == sources | DATA | CONFIGS
    assert any(name.endswith("/licenses/LICENSE") for name in info)
    assert "py3-none-any" in wheel.name


def test_the_command_of_an_installed_wheel_does_without_the_repository(wheel, tmp_path):
    """In an environment of its own, with this one's packages behind it but for latentvid, in an empty folder."""
    home = tmp_path / "env"
    venv.create(home, symlinks=True)
    site = Path(sysconfig.get_path("purelib", "venv", {"base": str(home), "platbase": str(home)}))
    pip = [sys.executable, "-m", "pip", "--python", str(home / "bin" / "python"), "install", "-q", "--no-deps"]
    subprocess.run([*pip, "--no-index", str(wheel)], check=True, timeout=100)
    (site / "others.pth").write_text(sysconfig.get_path("purelib") + "\n")
    empty = tmp_path / "empty"
    empty.mkdir()

    def latentvid(*arguments: str) -> str:
        env = {"PATH": os.environ["PATH"], "HOME": str(empty), "OMP_NUM_THREADS": "1"}
        done = subprocess.run(
            [str(home / "bin" / "latentvid"), *arguments], cwd=empty, env=env, capture_output=True, text=True
        )
        assert done.returncode == 0, done.stderr
        return done.stdout

    assert all(f"\n  {name} " in latentvid("--help") for name in ("train-dit", "t2v", "configs"))
    assert latentvid("configs", "dit/base") == (ROOT / "configs/dit/base.yaml").read_text()
    latentvid("configs", "--copy", "mine")
    assert {path.name for path in (empty / "mine").iterdir()} == {path.name for path in (ROOT / "configs").iterdir()}
    assert "usage: latentvid train-dit CONFIG" in latentvid("train-dit", "--help")
    latentvid("digits", "data", "--train", "4", "--val", "2")
    said = latentvid("train-vae", "small", "--run.dir", "runs/vae", "--data.manifest", "data/train.jsonl", "--dry-run")
    assert "4 samples" in said and not (empty / "runs").exists()
