"""The studio's pages, in Gradio: a tab for each program, the gallery, and runs in training."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

from ..data.video.reading import probe
from ..errors import UserError
from .fields import read_values
from .gallery_page import gallery_tab
from .mask import Drawn, first_frame, mask_of
from .runs_page import runs_tab
from .studio import Studio
from .tabs import TABS, Tab
from .widgets import progress, refused, rows

STYLE = """
.lv-progress { font-size: .92rem; line-height: 1.5; } .lv-progress progress { width: 100%; height: .7rem; }
.lv-progress .said { font-family: ui-monospace, monospace; font-size: .82rem; overflow-wrap: anywhere; opacity: .8; }
.lv-progress .wrong { color: #d1433f; opacity: 1; } .lv-frame { width: 100%; border: 0; }
#made caption, #made .caption { display: block; box-sizing: border-box; max-width: 100%; padding: 0 .6rem;
  white-space: nowrap; overflow: hidden; text-overflow: ellipsis; }
.lv-runs { width: 100%; border-collapse: collapse; font-size: .92rem; font-variant-numeric: tabular-nums; }
.lv-runs th { text-align: left; font-weight: 600; } .lv-runs th, .lv-runs td { padding: .35rem .6rem .35rem 0;
  border-bottom: 1px solid var(--border-color-primary); } .lv-runs td:first-child { overflow-wrap: anywhere; }
@media (max-width: 640px) { .lv-runs thead { display: none; }
  .lv-runs tr { display: flex; flex-wrap: wrap; gap: 0 .9rem; padding: .4rem 0;
    border-bottom: 1px solid var(--border-color-primary); }
  .lv-runs td { border: 0; padding: 0; } .lv-runs td:first-child { flex-basis: 100%; font-weight: 600; }
  .lv-runs td:empty { display: none; } .lv-runs td + td::before { content: attr(data-name) " "; opacity: .75; } }
footer { display: none !important; }
"""
HOUR_S = 3600  # after which uploads are removed
ONE = {"concurrency_id": "generation", "concurrency_limit": 1, "api_visibility": "private", "show_progress": "hidden"}
PLAIN = {"api_visibility": "private", "queue": False, "show_progress": "hidden"}


def theme() -> Any:
    """With the fonts of the machine: none is fetched."""
    import gradio as gr

    found = gr.themes.Default(font=["system-ui", "sans-serif"], font_mono=["ui-monospace", "monospace"])
    return found.set(block_info_text_color="*neutral_600", block_info_text_color_dark="*neutral_400")


def build(studio: Studio) -> Any:
    """The pages, as gr.Blocks."""
    import gradio as gr

    blocks = gr.Blocks(title="latentvid studio", analytics_enabled=False, delete_cache=(HOUR_S, HOUR_S))
    with blocks as page, gr.Tabs():
        for tab in TABS:
            with gr.Tab(tab.title, id=tab.program):
                _program_tab(studio, tab)
        with gr.Tab("Gallery", id="gallery") as shown:
            gallery_tab(studio, shown, partial(generation, studio), ONE, PLAIN)
        with gr.Tab("Runs", id="runs") as shown:
            runs_tab(studio, shown, PLAIN)
    return page


def _program_tab(studio: Studio, tab: Tab) -> None:
    import gradio as gr

    lists, seen = studio.lists(), 1 + len(tab.main)
    gr.HTML(f"<p>{tab.does}</p>")
    with gr.Row(equal_height=False):
        with gr.Column(scale=3):
            parts = rows(tab.fields[:seen], lists, tab.program)
            drawn = [_drawing(parts["clip"][0])] if "mask" in tab.main else []
            with gr.Accordion("More options", open=False):
                parts |= rows(tab.fields[seen:], lists, tab.program)
        with gr.Column(scale=2):
            with gr.Row():
                make = gr.Button("Generate", variant="primary", elem_id=f"make-{tab.program}")
                stop = gr.Button("Cancel", elem_id=f"stop-{tab.program}")
            said = gr.HTML(elem_id=f"said-{tab.program}")
            clip = gr.Video(label="What was made", autoplay=True, loop=True, visible=False, interactive=False)
            picture = gr.Image(label="What was made", type="filepath", visible=False, interactive=False)
    read = partial(_read, studio, tab, bool(drawn))
    make.click(partial(_make, studio, read), [*sum(parts.values(), []), *drawn], [said, clip, picture], **ONE)
    stop.click(studio.worker.stop, None, None, **PLAIN)


def _drawing(clip: Any) -> Any:
    """The picture on which a mask is drawn: the first frame of the clip."""
    import gradio as gr

    white = gr.Brush(colors=["#ffffff"], color_mode="fixed", default_size=24)
    with gr.Accordion("Draw the mask: white where to paint", open=True):
        editor = gr.ImageEditor(
            show_label=False, type="pil", brush=white, eraser=gr.Eraser(), sources=(), transforms=(),
            layers=False, elem_id="draw-mask", height=420,
        )  # fmt: skip
    clip.change(first_frame, clip, editor, **PLAIN)
    return editor


def _read(studio: Studio, tab: Tab, drawn: bool, given: tuple[Any, ...]) -> tuple[str, dict[str, Any]]:
    values = read_values(tab.fields, given[: len(given) - drawn], studio.gallery.keep)
    painted = Drawn.of(given[-1]) if drawn and "clip" in values else Drawn([])
    clip = probe(studio.gallery.kept(values["clip"])) if painted.layers else None
    if clip is not None and (mask := mask_of(painted, (clip.width, clip.height))) is not None:
        if "mask" in values:
            raise UserError("a mask is drawn, and one is given: rub one out, or remove the other")
        with mask.saved() as file:
            values["mask"] = studio.gallery.keep(str(file))
    return tab.program, values


def _make(
    studio: Studio, read: Callable[[tuple[Any, ...]], tuple[str, dict[str, Any]]], *given: Any
) -> Iterator[tuple[Any, Any, Any]]:
    try:
        program, values = read(given)
    except UserError as error:
        import gradio as gr

        yield refused(str(error)), gr.skip(), gr.skip()
        return
    yield from generation(studio, program, values)


def generation(studio: Studio, program: str, values: dict[str, Any]) -> Iterator[tuple[Any, Any, Any]]:
    """Makes a clip; gives what is said of it, and at last the clip, for an HTML, a Video and an Image."""
    import gradio as gr

    try:
        job, items = studio.start(program, values)
    except UserError as error:
        yield refused(str(error)), gr.skip(), gr.skip()
        return
    for state in job.watch():
        yield progress(state, items[0].name if items else ""), gr.skip(), gr.skip()
    if not items:
        return
    file, picture = str(studio.gallery.file(items[0])), items[0].name.endswith(".png")
    shown = gr.update(value=file, visible=True), gr.update(visible=False, value=None)
    yield (gr.skip(), *(shown[::-1] if picture else shown))
