"""Who may import whom, read from the import statements, and imports that leave no trace."""

import ast
import importlib
import importlib.util
import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = ROOT / "latentvid"
FILES = sorted(PACKAGE.rglob("*.py"))
SCRIPT_FOLDERS = ("vae", "train", "inference", "benchmarks", "tests")

BASE = {"errors", "files", "progress", "limits", "lock", "rng", "packing", "precision", "weights"}
MAY_IMPORT = {  # parts of the package that a part may import; what is not listed may import all
    "errors": set(),
    "files": {"errors"},
    "progress": set(),
    "lock": {"errors"},
    "limits": {"errors"},
    "command_line": {"limits"},
    "weights": {"errors", "files", "limits"},
    "rng": set(),
    "precision": {"errors"},
    "packing": {"errors"},
    "world": {"errors"},
    "sequence": {"errors", "packing", "world"},
    "tables": set(),
    "page": set(),
    "charts": {"page"},
    "cpu": {"cpu"},
    "kernels": {"cpu"},
    "attention": BASE | {"kernels"},
    "text": BASE,
    "models": BASE | {"attention", "kernels", "sequence", "models"},
    "diffusion": BASE | {"diffusion"},
    "config": BASE | {"config", "data", "diffusion"},
    "data": BASE | {"data"},
    "pipelines": BASE | {"command_line", "world", "attention", "text", "models", "diffusion", "data", "pipelines"},
}


def module_name(file: Path) -> str:
    return ".".join(file.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")


def _is_program(node: ast.stmt) -> bool:
    """Whether it is `if __name__ == "__main__":`, which no import runs."""
    return isinstance(node, ast.If) and ast.unparse(node.test) == "__name__ == '__main__'"


def imported(file: Path) -> set[str]:
    """Absolute dotted names that the file imports, wherever the statement stands but in what runs as a program."""
    package = module_name(file) if file.name == "__init__.py" else module_name(file).rpartition(".")[0]
    names = set()
    tree = ast.parse(file.read_text(encoding="utf-8"))
    tree.body = [node for node in tree.body if not _is_program(node)]
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            parts = package.split(".")[: len(package.split(".")) + 1 - node.level] if node.level else []
            origin = ".".join([*parts, *([node.module] if node.module else [])])
            names |= {f"{origin}.{alias.name}" for alias in node.names}
    return names


def part(name: str) -> str | None:
    """The part of the package that a dotted name lies in."""
    pieces = name.split(".")
    return pieces[1] if pieces[0] == "latentvid" and len(pieces) > 1 else None


def test_the_reader_of_imports_sees_every_form(tmp_path, monkeypatch):
    monkeypatch.setattr(sys.modules[__name__], "ROOT", tmp_path)
    file = tmp_path / "latentvid" / "data" / "x.py"
    file.parent.mkdir(parents=True)
    file.write_text("from .. import training\nfrom ..models.layers import Block\ndef f():\n    import latentvid.text\n")
    assert imported(file) == {"latentvid.training", "latentvid.models.layers.Block", "latentvid.text"}


@pytest.mark.parametrize("file", FILES, ids=module_name)
def test_parts_import_only_what_they_may(file):
    own = part(module_name(file))
    if own in MAY_IMPORT:
        wrong = {name for name in imported(file) if part(name) not in MAY_IMPORT[own] | {None}}
        assert not wrong, f"{own} must not import these"


def test_one_file_imports_what_is_for_cpus_alone():
    users = {module_name(file) for file in FILES if "cpu" in map(part, imported(file))}
    assert {name for name in users if part(name) != "cpu"} == {"latentvid.kernels"}


@pytest.mark.parametrize("file", FILES, ids=module_name)
def test_the_demo_is_nobodys_part(file):
    """The page of runs asks for the demo's where there is a demo to show; evaluation knows of no page either."""
    own, others = part(module_name(file)), {part(name) for name in imported(file)}
    assert "demo" not in others or own in ("demo", "commands") or file == PACKAGE / "report" / "pages.py"
    assert own != "evaluation" or not others & {"report", "training"}


@pytest.mark.parametrize("file", FILES, ids=module_name)
def test_the_library_never_imports_a_script(file):
    scripts = {path.stem for folder in SCRIPT_FOLDERS for path in (ROOT / folder).glob("*.py")}
    wrong = {name for name in imported(file) if name.split(".")[0] in scripts | set(SCRIPT_FOLDERS)}
    assert not wrong


SCRIPTS = [path for folder in ("inference", "train", "vae") for path in sorted((ROOT / folder).glob("*.py"))]
PROGRAMS = [
    *(path.relative_to(ROOT).as_posix() for path in SCRIPTS),
    *(f"-m latentvid.{name}" for name in ("evaluation", "report", "data.manifest", "training.export")),
    *(
        f"-m latentvid.{name}"
        for name in ("evaluation.compare", "data.digits", "demo.digits", "demo.scoring", "demo.judge")
    ),
]
ASK = """
import contextlib, io, json, runpy, sys

for program in json.loads(sys.argv[1]):
    sys.argv = [program, "--help"]
    said, run = io.StringIO(), runpy.run_module if program.startswith("-m ") else runpy.run_path
    with contextlib.redirect_stdout(said), contextlib.suppress(SystemExit):
        run(program.removeprefix("-m "), run_name="__main__")
    heavy = {"torch", "diffusers", "transformers", "accelerate", "pandas"} & sys.modules.keys()
    print(json.dumps([program, "--" in said.getvalue(), sorted(heavy)]))
"""


def test_every_program_says_its_options_before_anything_heavy_is_imported():
    run = subprocess.run(
        [sys.executable, "-c", ASK, json.dumps(PROGRAMS)], cwd=ROOT, capture_output=True, text=True, timeout=120
    )
    assert run.returncode == 0, run.stderr
    assert [json.loads(line) for line in run.stdout.splitlines()] == [[name, True, []] for name in PROGRAMS]


WATCH = """
import importlib, json, os, random, sys, sysconfig

stdlib, root, effects = sysconfig.get_path("stdlib"), sys.argv[1], []

def culprit():
    "File of the innermost frame that is neither this program nor Python's own."
    frame = sys._getframe(2)
    while frame is not None:
        file = frame.f_code.co_filename
        if not file.startswith("<") and (not file.startswith(stdlib) or "site-packages" in file):
            return file
        frame = frame.f_back

def watch(event, args):
    writes = event == "open" and isinstance(args[1], str) and set(args[1]) & set("wax+")
    if writes or event in ("os.mkdir", "os.putenv", "os.unsetenv", "os.remove", "os.rename", "subprocess.Popen"):
        file = culprit()
        if file and file.startswith(root):
            effects.append([file, event, str(args[0])])

import numpy, torch
def state():
    default = str(torch.get_default_dtype()), torch.get_num_threads(), torch.are_deterministic_algorithms_enabled()
    rng = hash(torch.get_rng_state().numpy().tobytes()), hash(random.getstate()), str(numpy.random.get_state()[1:])
    return default, rng, torch.cuda.is_initialized(), os.getcwd()

before = state()
sys.addaudithook(watch)
for name in json.loads(sys.argv[2]):
    importlib.import_module(name)
print(json.dumps({"effects": effects, "same": before == state(), "made": os.listdir()}))
"""


def test_importing_every_module_has_no_effects(tmp_path):
    """No folder, file, environment variable, process, draw of random numbers or look at the GPU."""
    names = [module_name(file) for file in FILES]
    run = subprocess.run(
        [sys.executable, "-B", "-c", WATCH, str(PACKAGE), json.dumps(names)],
        cwd=tmp_path,
        env={"PATH": "/usr/bin:/bin", "PYTHONPATH": str(ROOT), "HOME": str(tmp_path / "home"), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert run.returncode == 0, run.stderr
    assert json.loads(run.stdout) == {"effects": [], "same": True, "made": []}, run.stdout


def late(file: Path) -> set[str]:
    """What the file imports of the package inside functions, where no import of the file would miss it."""
    tree = ast.parse(file.read_text(encoding="utf-8"))
    early = {id(node) for node in tree.body}
    inside = [n for n in ast.walk(tree) if isinstance(n, ast.ImportFrom) and id(n) not in early]
    package = (module_name(file) if file.name == "__init__.py" else module_name(file).rpartition(".")[0]).split(".")
    names = set()
    for node in inside:
        if node.level:
            origin = [*package[: len(package) + 1 - node.level], *([node.module] if node.module else [])]
            names |= {f"{'.'.join(origin)}.{alias.name}" for alias in node.names}
    return names


@pytest.mark.parametrize("file", [file for file in FILES if late(file)], ids=module_name)
def test_what_is_imported_late_is_there(file):
    for name in late(file):
        origin, _, last = name.rpartition(".")
        found = hasattr(importlib.import_module(origin), last)
        assert found or importlib.util.find_spec(name), f"{name} is not there"
