"""The wheel holds the package with its data, and nothing else."""

import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
# what could find its way into a wheel by mistake
KEPT = (".py", ".toml", ".md", ".safetensors", ".html", ".css", ".yaml", ".txt")
DATA = {"latentvid/page.css", "latentvid/demo/judge.safetensors", "latentvid/evaluation/preference/page.html"}


def unwanted(folder: str, names: list[str]) -> list[str]:
    """Of a copy of the tree: environments, outputs, and files that are no sources."""
    return [
        name
        for name in names
        if name in ("runs", "build", "dist", "__pycache__") or name.startswith(".") or name.endswith(".egg-info")
        if not name.startswith("LICENSE")
    ] + [name for name in names if (Path(folder) / name).is_file() and not name.endswith(KEPT) and name != "LICENSE"]


def test_the_wheel_holds_only_the_package(tmp_path):
    tree, out = tmp_path / "tree", tmp_path / "out"
    shutil.copytree(ROOT, tree, ignore=unwanted)
    # offline: the backend is the one of this environment
    command = [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", str(out), str(tree)]
    run = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert run.returncode == 0, run.stdout + run.stderr
    (wheel,) = out.glob("*.whl")
    names = set(zipfile.ZipFile(wheel).namelist())

    info = {name for name in names if name.split("/")[0].endswith(".dist-info")}
    sources = {path.relative_to(ROOT).as_posix() for path in (ROOT / "latentvid").rglob("*.py")}
    assert names - info == sources | DATA
    assert any(name.endswith("/licenses/LICENSE") for name in info)
    assert "py3-none-any" in wheel.name
