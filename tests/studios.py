"""A studio over a tiny pipeline, and pages of it that are served on this machine."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from latentvid.studio.gallery import Gallery, Item
from latentvid.studio.limits import Limits
from latentvid.studio.studio import Studio


def studio(folder: Path, pipeline: Path | str, limits: Limits | None = None, **given: Any) -> Studio:
    """With its gallery in folder/gallery and runs in folder/runs."""
    lists = {"model": [str(pipeline)], **{name: list(map(str, paths)) for name, paths in given.items()}}
    return Studio(Gallery(folder / "gallery", limits), lists, [folder / "runs"])


def made(studio: Studio, program: str, values: dict[str, Any]) -> Item:
    """The item that a program makes."""
    job, items = studio.start(program, values)
    (*_, last) = job.watch(0.01)
    assert last.status == 0 and len(items) == 1, last
    return items[0]


def put(gallery: Gallery, clip: Any, fps: float = 8, program: str = "t2v", **values: Any) -> Item:
    """A clip uint8 [F,H,W,3] that is in the gallery without having been made."""
    from latentvid.data.video.writing import write_video

    file = gallery.new(".mp4")
    write_video(file, clip, fps)
    return gallery.add(file, program, values, [program], 1.0)


@contextmanager
def served(studio: Studio, password: str | None = None, limits: Limits | None = None) -> Iterator[str]:
    """The address of the studio's pages, inside."""
    from latentvid.studio.server import launch

    page = launch(studio, "127.0.0.1", None, password, limits or Limits())
    try:
        yield page.local_url.rstrip("/")
    finally:
        studio.worker.close()
        page.close()


def press(page: Any, selector: str) -> None:
    """Clicks on it once it is seen: Gradio draws and moves its parts for a while."""
    page.wait(
        f"""(() => {{ const element = document.querySelector({selector!r}); if (!element) return false;
            element.scrollIntoView({{ block: "center", behavior: "instant" }});
            const box = element.getBoundingClientRect();
            return element.contains(document.elementFromPoint(box.x + box.width / 2, box.y + box.height / 2)); }})()"""
    )
    page.click(selector)


def write(page: Any, name: str, text: str) -> None:
    """Into a field, instead of what it holds."""
    press(page, f"#{name} textarea, #{name} input")
    page.run("document.activeElement.select()")
    page.type(text)


def turn_to(page: Any, title: str) -> None:
    """A tab, also where a narrow page hides it in a menu."""
    find = "[...document.querySelectorAll('button[role=tab], .overflow-dropdown button')]"
    page.wait(f"{find}.find(e => e.textContent.trim() === {title!r})")
    page.run(f"{find}.findLast(e => e.textContent.trim() === {title!r}).click()")
