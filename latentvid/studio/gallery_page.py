"""The gallery's tab: what was made, again, another one like it, and two of them compared blind."""

import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from ..errors import UserError
from .comparing import Blind, blind, keep_choice, side_by_side
from .gallery import Item
from .studio import Studio
from .widgets import as_command, refused

PAGE = 48  # clips that are shown at first, and more at each press
CAPTION = 80  # characters
COMPARISONS = "comparisons"
Generation = Callable[[str, dict[str, Any]], Iterator[tuple[Any, Any, Any]]]


def caption(item: Item) -> str:
    words = " ".join(item.prompt.split())
    return f"{words[:CAPTION]}{'...' * (len(words) > CAPTION)} (seed {item.seed})"


def about(item: Item) -> str:
    """How an item was made, as plain text."""
    lines = [f"{item.name}: {item.program}, {item.made}, {item.seconds:g} s"]
    lines += [f"{name}: {value}" for name, value in item.values.items()]
    return "\n".join([*lines, "", as_command(item.command)])


def listed(studio: Studio, words: str, most: int) -> list[Item]:
    """The newest items whose prompt holds the words."""
    words = words.strip().casefold()
    return [item for item in studio.gallery.items() if words in item.prompt.casefold()][:most]


def partners(studio: Studio, item: Item) -> list[tuple[str, str]]:
    """(words, name) of the other clips of the same prompt, the newest first."""
    others = [o for o in studio.gallery.items() if o.prompt == item.prompt and o.name != item.name]
    return [(f"{other.name}, seed {other.seed}, {other.program}", other.name) for other in others]


def gallery_tab(studio: Studio, tab: Any, generation: Generation, one: dict[str, Any], plain: dict[str, Any]) -> None:
    import gradio as gr

    with gr.Row():
        words = gr.Textbox(label="Prompts with", scale=3, elem_id="search")
        more = gr.Button("Older ones too", scale=1)
    pictures = gr.Gallery(label="Made so far", columns=4, object_fit="contain", height="auto", elem_id="made",
                          show_label=False, buttons=[])  # fmt: skip
    names, most, chosen = gr.State([]), gr.State(PAGE), gr.State(None)
    facts = gr.Textbox(label="How it was made", lines=6, max_lines=14, interactive=False, elem_id="facts")
    with gr.Row():
        again = gr.Button("Again", elem_id="again")
        vary = gr.Button("Vary (next seed)", elem_id="vary")
        stop = gr.Button("Cancel")
    said = gr.HTML(elem_id="said-gallery")
    clip = gr.Video(label="What was made", autoplay=True, loop=True, visible=False, interactive=False)
    picture = gr.Image(label="What was made", type="filepath", visible=False, interactive=False)

    def show(words: str, most: int) -> tuple[Any, Any]:
        items = listed(studio, words, most)
        return [(str(studio.gallery.file(item)), caption(item)) for item in items], [item.name for item in items]

    both = [pictures, names]
    tab.select(show, [words, most], both, **plain)
    words.submit(show, [words, most], both, **plain)
    more.click(lambda most: most + PAGE, most, most, **plain).then(show, [words, most], both, **plain)

    with gr.Accordion("Compare blind", open=False, elem_id="compare"):
        gr.HTML(
            "<p>The chosen clip and another one of its prompt, in random order. Choices are kept in the gallery's "
            f"folder {COMPARISONS}, for <code>latentvid preference choices</code>.</p>"
        )
        other = gr.Dropdown([], label="With", elem_id="with")
        start = gr.Button("Show both", elem_id="show-both")
        pair = gr.State(None)
        film = gr.Video(label="Left and right", autoplay=True, loop=True, interactive=False, elem_id="pair")
        with gr.Row():
            sides = {
                side: gr.Button(title, elem_id=f"choose-{side}")
                for side, title in (("left", "Left looks better"), ("tie", "Equal"), ("right", "Right looks better"))
            }
        told = gr.HTML(elem_id="told")

    def choose(names: list[str], event: gr.SelectData) -> tuple[Any, ...]:
        try:
            item = studio.gallery.item(names[event.index])
        except (UserError, IndexError, TypeError) as error:
            return None, str(error), gr.update(choices=[], value=None), None
        others = partners(studio, item)
        return item.name, about(item), gr.update(choices=others, value=others[0][1] if others else None), None

    pictures.select(choose, names, [chosen, facts, other, pair], **plain)

    def make(how: Callable[[Item], tuple[str, dict[str, Any]]]) -> Callable[..., Iterator[tuple[Any, Any, Any]]]:
        def made(name: str | None) -> Iterator[tuple[Any, Any, Any]]:
            try:
                program, values = how(studio.gallery.item(name or "nothing chosen:"))
            except UserError as error:
                yield refused(str(error) if name else "choose a clip first"), gr.skip(), gr.skip()
                return
            yield from generation(program, values)

        return made

    for button, how in ((again, Item.again), (vary, Item.vary)):
        button.click(make(how), chosen, [said, clip, picture], **one).then(show, [words, most], both, **plain)
    stop.click(studio.worker.stop, None, None, **plain)

    def show_both(name: str | None, with_name: str | None) -> tuple[Any, Any, Any]:
        if not (name and with_name):
            return None, None, refused("choose a clip above, of whose prompt there is another one: Vary makes one")
        try:
            found = blind(studio.gallery.item(name), studio.gallery.item(with_name))
            video = side_by_side(studio.gallery, found)
        except UserError as error:
            return None, None, refused(str(error))
        # under Gradio's own folder, which it removes what is old from
        place = Path(tempfile.mkdtemp(dir=_temporary())) / "pair.mp4"
        place.write_bytes(video)
        return found, str(place), ""

    start.click(show_both, [chosen, other], [pair, film, told], **plain)

    def keep(side: str) -> Callable[[Blind | None], tuple[Any, Any]]:
        def kept(found: Blind | None) -> tuple[Any, Any]:
            if found is None:
                return None, refused("show two clips first")
            try:
                number = keep_choice(studio.gallery.folder / COMPARISONS, studio.gallery, found, side)
            except UserError as error:
                return found, refused(str(error))
            left, right = found.sides
            return None, f"<p>Kept ({number} choices so far). Left: {left.name}, right: {right.name}.</p>"

        return kept

    for side, button in sides.items():
        button.click(keep(side), pair, [pair, told], **plain)


def _temporary() -> str:
    from gradio.utils import get_upload_folder

    Path(folder := get_upload_folder()).mkdir(parents=True, exist_ok=True)
    return folder
