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

BASE = {
    "errors",
    "places",
    "files",
    "progress",
    "limits",
    "lock",
    "rng",
    "packing",
    "precision",
    "references",
    "transfer",
    "versions",
}
BASE |= {"weights", "words", "world"}
# What a part of the package may import, by the start of dotted names; the longest name that fits a module is its own.
# What is not listed may import all.
MAY_IMPORT = {
    "places": set(),
    "errors": {"places"},
    "files": {"errors", "places"},
    "progress": set(),
    "lock": {"errors"},
    "limits": {"errors"},
    "command_line": {"errors", "files", "limits", "places"},
    "weights": {"errors", "files", "limits"},
    "references": {"errors", "limits"},
    "rng": set(),
    "versions": set(),
    "precision": {"errors"},
    "packing": {"errors"},
    "words": set(),
    "world": {"errors", "words"},
    "sequence": {"errors", "packing", "world"},
    "tables": set(),
    "transfer": set(),
    "page": set(),
    "charts": {"page"},
    "cpu": {"cpu"},
    "kernels": {"cpu"},
    "attention": BASE - {"world"} | {"kernels"},
    "text": BASE - {"world"} | {"text"},
    "models": BASE - {"world"} | {"attention", "kernels", "sequence", "text.policy", "models"},
    "diffusion": BASE - {"world"} | {"diffusion"},
    "programs": BASE
    | {"command_line", "config", "doctor", "report", "data", "pipelines", "models", "evaluation", "training", "demo"}
    | {"programs"},
    "config": BASE - {"world"} | {"config", "diffusion"},
    "data": BASE - {"world"} | {"data"},
    "curation": BASE | {"commands", "config", "data", "evaluation", "curation"},
    "adapters": BASE | {"commands", "models", "pipelines"},
    "pipelines": BASE | {"command_line", "attention", "text", "models", "diffusion", "data", "pipelines"},
}
# config <- data <- parallel <- checkpoint <- monitor <- trainer; stages import the protocol, and the trainer no stage
LOWEST = {"training.signals", "training.machine", "training.optim", "training.adamw8bit", "training.origin"}
PARALLEL = BASE | LOWEST | {"config", "data", "models", "training.parallel"}
CHECKPOINT = PARALLEL | {"training.checkpoint", "training.ema", "training.compute"}
PROTOCOL = {"training.task"}
MONITOR = CHECKPOINT | PROTOCOL | {"training.monitor", "evaluation.sheet"}
FEED = BASE | LOWEST | {"config", "data", "training.feed"}
STAGE = BASE | LOWEST | PROTOCOL | {"config", "data", "models", "diffusion", "evaluation", "training.compute"}
STAGE |= {"training.feed"}
MAY_IMPORT |= {
    **{name: BASE | {"config"} for name in LOWEST},
    "training.optim": BASE | {"config", "training.adamw8bit"},
    "training.parallel": PARALLEL,
    "training.ema": {"training.parallel"},
    "training.checkpoint": CHECKPOINT - {"training.compute"},
    "training.compute": BASE | {"config", "training.checkpoint"},
    "training.task": BASE | {"config", "data", "models", "evaluation.sheet", "training.optim", "training.origin"},
    "training.feed": FEED,
    "training.launch": PARALLEL | PROTOCOL,
    "training.afterwards": set(),
    "training.monitor": MONITOR,
    "training.dryrun": MONITOR | {"kernels", "tables", "training.launch", "training.dryrun"},
    "training.export": CHECKPOINT | PROTOCOL | {"commands"},
    "training": MONITOR
    | FEED
    | {"training.run", "training.step", "training.dryrun", "training.launch", "training.export", "training.afterwards"},
    "training.stages.dit": STAGE
    | {"attention", "sequence", "text", "pipelines", "training.checkpoint.init"}
    | {"training.parallel.sharing", "training.parallel.deferred", "training.stages.dit"},
    "training.stages.vae": STAGE | {"training.checkpoint.init", "training.stages.vae"},
    "training.stages": {"config", "training.task", "training.stages"},
}
# Imports inside functions: of the package only in programs, which answer --help before anything heavy is imported;
# of other packages these, none of which is there to break a circle.
PROGRAMS_THAT_IMPORT_LATE = {"commands", "evaluation.__main__", "evaluation.vbench.__main__", "report.__main__"}
PROGRAMS_THAT_IMPORT_LATE |= {"studio.__main__"}
PROGRAMS_THAT_IMPORT_LATE |= {f"programs.{file.stem}" for file in (PACKAGE / "programs").glob("*.py")}
IMPORTED_LATE = {
    "torch": "configurations and --help do without it; its parts for FSDP2 and for attention of CUDA, where those run",
    "deepspeed": "optional: ZeRO",
    "flash_attn": "optional: a backend of attention",
    "transformers": "its switch for ZeRO-3, where that runs",
    "bitsandbytes": "optional: moments of 8 bits",
    "torchao": "optional: text encoders of int8 weights",
    "torchvision": "slow to import: networks of few scores",
    "torchmetrics": "slow to import: few scores",
    "cv2": "slow to import: one score",
    "sklearn": "slow to import: the demo's digits",
    "pyiqa": "optional: one score",
    "ray": "optional: runs curations",
    "gradio": "optional: the studio",
    "starlette": "optional: the studio, with gradio",
    "scenedetect": "optional: shot detectors of curations",
    "onnxruntime": "optional: a detector of text in curations",
}


def module_name(file: Path) -> str:
    return ".".join(file.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")


def _is_program(node: ast.stmt) -> bool:
    """Whether it is `if __name__ == "__main__":`, which no import runs."""
    return isinstance(node, ast.If) and ast.unparse(node.test) == "__name__ == '__main__'"


def names_in(tree: ast.AST, file: Path) -> set[str]:
    """Absolute dotted names that the code of a file, or a part of it, imports."""
    module = module_name(file)
    package = module if file.name == "__init__.py" else module.rpartition(".")[0]
    names = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            parts = package.split(".")[: len(package.split(".")) + 1 - node.level] if node.level else []
            origin = ".".join([*parts, *([node.module] if node.module else [])])
            names |= {f"{origin}.{alias.name}" for alias in node.names}
    return names


def imported(file: Path) -> set[str]:
    """Absolute dotted names that the file imports, wherever the statement stands but in what runs as a program."""
    tree = ast.parse(file.read_text(encoding="utf-8"))
    tree.body = [node for node in tree.body if not _is_program(node)]
    return names_in(tree, file)


def lies_in(name: str, part: str) -> bool:
    return name == part or name.startswith(f"{part}.")


def rules(name: str) -> set[str] | None:
    """What the module of that dotted name may import; None where it is all."""
    own = [part for part in MAY_IMPORT if lies_in(name, f"latentvid.{part}")]
    return MAY_IMPORT[max(own, key=len)] if own else None


def test_the_reader_of_imports_sees_every_form(tmp_path, monkeypatch):
    monkeypatch.setattr(sys.modules[__name__], "ROOT", tmp_path)
    file = tmp_path / "latentvid" / "data" / "x.py"
    file.parent.mkdir(parents=True)
    file.write_text("from .. import training\nfrom ..models.layers import Block\ndef f():\n    import latentvid.text\n")
    assert imported(file) == {"latentvid.training", "latentvid.models.layers.Block", "latentvid.text"}


@pytest.mark.parametrize("file", FILES, ids=module_name)
def test_parts_import_only_what_they_may(file):
    allowed = rules(module_name(file))
    if allowed is not None:
        own = {name for name in imported(file) if lies_in(name, "latentvid")}
        wrong = {name for name in own if not any(lies_in(name, f"latentvid.{part}") for part in allowed)}
        assert not wrong, "its part must not import these"


def test_the_rules_tell_rooms_apart():
    assert "training.checkpoint" not in rules("latentvid.training.parallel.zero")
    assert "training.monitor" not in rules("latentvid.training.checkpoint.saver")
    for module in ("latentvid.training.trainer", "latentvid.training.run"):
        assert not any(name.startswith("training.stages") for name in rules(module))
    assert rules("latentvid.training.stages.vae.task") is MAY_IMPORT["training.stages.vae"]
    assert "data" not in rules("latentvid.config.schema") and rules("latentvid.report.pages") is None


def test_one_file_imports_what_is_for_cpus_alone():
    users = {module_name(file) for file in FILES if any(lies_in(name, "latentvid.cpu") for name in imported(file))}
    assert {name for name in users if not lies_in(name, "latentvid.cpu")} == {"latentvid.kernels"}


@pytest.mark.parametrize("file", FILES, ids=module_name)
def test_the_demo_is_nobodys_part(file):
    """The page of runs asks for the demo's where there is a demo to show; evaluation knows of no page either."""
    own, names = module_name(file), imported(file)
    if not any(
        lies_in(own, f"latentvid.{name}")
        for name in ("demo", "commands", "programs.train_text_encoder", "report.pages")
    ):
        assert not any(lies_in(name, "latentvid.demo") for name in names)
    if lies_in(own, "latentvid.evaluation"):
        assert not any(lies_in(name, f"latentvid.{part}") for name in names for part in ("report", "training"))


@pytest.mark.parametrize("file", FILES, ids=module_name)
def test_the_library_never_imports_a_script(file):
    scripts = {path.stem for folder in SCRIPT_FOLDERS for path in (ROOT / folder).glob("*.py")}
    wrong = {name for name in imported(file) if name.split(".")[0] in scripts | set(SCRIPT_FOLDERS)}
    assert not wrong


SCRIPTS = [path for folder in ("inference", "train", "vae") for path in sorted((ROOT / folder).glob("*.py"))]
PROGRAMS = [
    *(path.relative_to(ROOT).as_posix() for path in SCRIPTS),
    *(f"-m latentvid.{name}" for name in ("evaluation", "report", "preference", "adapters", "curation")),
    *(f"-m latentvid.{name}" for name in ("data.manifest", "training.export")),
    *(
        f"-m latentvid.{name}"
        for name in (
            "evaluation.compare",
            "evaluation.vbench",
            "data.digits",
            "demo.digits",
            "demo.glyph",
            "demo.looks",
            "demo.scoring",
            "demo.judge",
        )
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
    """Absolute dotted names that the file imports inside functions, where no import of the file would miss them."""
    tree = ast.parse(file.read_text(encoding="utf-8"))
    functions = [node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)]
    return {name for function in functions for name in names_in(function, file)}


@pytest.mark.parametrize("file", [file for file in FILES if late(file)], ids=module_name)
def test_no_import_hides_in_a_function(file):
    program = any(module_name(file) == f"latentvid.{name}" for name in PROGRAMS_THAT_IMPORT_LATE)
    for name in late(file):
        if lies_in(name, "latentvid"):
            assert program, f"import {name} at the top: a circle is untied, not hidden"
            origin, _, last = name.rpartition(".")
            found = hasattr(importlib.import_module(origin), last)
            assert found or importlib.util.find_spec(name), f"{name} is not there"
        elif name.split(".")[0] not in sys.stdlib_module_names:
            assert name.split(".")[0] in IMPORTED_LATE, f"import {name} at the top, or say why not in IMPORTED_LATE"
