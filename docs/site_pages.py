"""Pages of the site that lie elsewhere or follow from the code: a hook of mkdocs.yml, run by `make docs`."""

from pathlib import Path

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files

ROOT = Path(__file__).resolve().parents[1]
PAGES = {"index.md": "README.md", "changelog.md": "CHANGELOG.md", "contributing.md": "CONTRIBUTING.md"}
API = {
    "Generation": ("pipelines.latent_video", "pipelines.sampling", "pipelines.edits", "pipelines.cascade"),
    "Diffusion": (
        "diffusion.path",
        "diffusion.objective",
        "diffusion.scheduler",
        "diffusion.solvers",
        "diffusion.guidance",
    ),
    "Networks": ("models.transformer", "models.layers", "models.autoencoder", "attention", "packing"),
    "Data": ("data.clips", "data.manifest.manifest", "data.plan.plan"),
    "Training": ("config.schema", "training.trainer", "training.run", "training.export"),
    "Evaluation": ("evaluation.metrics", "evaluation.scoring"),
}


def links_within(text: str) -> str:
    """The same page where docs/ is the folder that it lies in."""
    text = text.replace("](docs/", "](")
    for name, source in PAGES.items():
        text = text.replace(f"]({source})", f"]({name})")
    return text


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Adds the pages."""
    for name, source in PAGES.items():
        text = (ROOT / source).read_text(encoding="utf-8")
        files.append(File.generated(config, name, content=links_within(text)))
    lines = [
        "# API reference",
        "",
        "From the docstrings: shapes, units, ranges, errors, and the source of each formula.",
    ]
    for title, modules in API.items():
        lines += ["", f"# {title}", *(f"\n::: latentvid.{module}" for module in modules)]
    files.append(File.generated(config, "api.md", content="\n".join(lines) + "\n"))
    return files
