"""Every tab of the studio, driven in a browser by clicks, over a tiny pipeline of random weights."""

import json
import shutil

import pytest
import torch
from browser import browser

pytest.importorskip("gradio")
from studios import press, put, served, studio, turn_to, write

from latentvid.data.video.reading import probe, read_frames
from latentvid.data.video.writing import write_video
from latentvid.evaluation.preference.key import read_key
from latentvid.preference.label import by_choices
from latentvid.studio.tabs import TABS

pytestmark = pytest.mark.slow
FRAMES, SIZE = 5, 32
# [width of the page, elements that stick out of it, but for those in what scrolls by itself]
WIDER = """(() => {
  const scrolls = e => e && (/auto|scroll|hidden|clip/.test(getComputedStyle(e).overflowX) || scrolls(e.parentElement));
  const out = [...document.body.querySelectorAll('*')].filter(e => e.offsetParent
    && e.getBoundingClientRect().right > innerWidth + 1 && !scrolls(e.parentElement));
  return [document.documentElement.scrollWidth, out.slice(0, 3).map(e => e.outerHTML.slice(0, 200))]; })()"""
# texts that are paler against their ground than 4.5 : 1 (https://www.w3.org/TR/WCAG21/#contrast-minimum)
PALE = """(() => {
  const parts = colour => (colour.match(/[\\d.]+/g) || []).map(Number);
  const linear = v => v <= .04045 ? v / 12.92 : ((v + .055) / 1.055) ** 2.4;
  const light = rgb => rgb.slice(0, 3).map(v => linear(v / 255))
    .reduce((sum, v, i) => sum + v * [.2126, .7152, .0722][i], 0);
  const ground = e => { for (; e; e = e.parentElement) { const c = parts(getComputedStyle(e).backgroundColor);
    if (c.length === 3 || c[3] > .9) return c; } return [255, 255, 255]; };
  return [...document.querySelectorAll('label span, .label-wrap span, p, th, td, .said, b')].filter(e => e.offsetParent
      && e.children.length === 0 && e.textContent.trim()).filter(e => {
    const [a, b] = [light(parts(getComputedStyle(e).color)), light(ground(e))];
    return (Math.max(a, b) + .05) / (Math.min(a, b) + .05) < 4.5; }).slice(0, 3).map(e => e.textContent.trim()); })()"""
LARGER = {"low": {"place": "aligned", "degrade": [{"kind": "resize", "amount": [2, 2]}]}}


@pytest.fixture(scope="module")
def clip(tmp_path_factory):
    """A clip <img ...>.mp4 that the pipeline could have made."""
    file = tmp_path_factory.mktemp("clips") / "<img src=x onerror=1>.mp4"
    noise = torch.Generator().manual_seed(0)
    frames = torch.randint(0, 255, (FRAMES, SIZE, SIZE, 3), dtype=torch.uint8, generator=noise)
    write_video(file.with_name("a.mp4"), frames, 8)
    file.with_name("a.mp4").rename(file)
    return file


@pytest.fixture(scope="module")
def picture(tmp_path_factory):
    file = tmp_path_factory.mktemp("pictures") / "p.png"
    write_video(file, torch.full((1, SIZE, SIZE, 3), 90, dtype=torch.uint8), 1)
    return file


@pytest.fixture(scope="module")
def own(tmp_path_factory, tiny_pipeline, given_pipeline):
    larger = shutil.copytree(tiny_pipeline, tmp_path_factory.mktemp("larger") / "pipeline")
    index = json.loads((larger / "model_index.json").read_text())
    (larger / "model_index.json").write_text(json.dumps(index | {"references": LARGER}))
    made = studio(tmp_path_factory.mktemp("studio"), given_pipeline)
    made.given["model"].append(str(larger))
    return made


@pytest.fixture(scope="module")
def page(own, tmp_path_factory):
    with served(own) as address, browser(tmp_path_factory.mktemp("browser")) as found:
        found.view(1280, 1000)
        found.visit(address)
        found.wait("document.querySelector('#make-t2v')")
        yield found


def generate(page, own, program: str, title: str, texts: dict[str, str], files: dict) -> dict:
    """What the gallery says of the clip that the tab makes."""
    before = len(own.gallery.items())
    turn_to(page, title)
    for name, file in files.items():
        page.wait(f"document.querySelector('#{program}-{name} input[type=file]')")
        page.give(f"#{program}-{name}", file)
        page.wait(f"!document.querySelector('#{program}-{name} input[type=file]') "
                  f"|| document.querySelector('#{program}-{name} img, #{program}-{name} .file-preview')")  # fmt: skip
    for name, text in texts.items():
        write(page, f"{program}-{name}", text)
    said = f"document.querySelector('#said-{program}').innerText"
    last = page.run(said)  # of a clip that the tab made before
    press(page, f"#make-{program}")
    page.wait(f"{said} !== {json.dumps(last)} && /made in|not made|error/.test({said})", 240)
    assert "made in" in page.run(said) and "not made" not in page.run(said), page.run(said)
    (item, *_), count = own.gallery.items(), len(own.gallery.items())
    assert count == before + 1 and item.program == program
    shown = f"[...document.querySelectorAll('video, img')].some(e => e.offsetParent && e.src.includes({item.name!r}))"
    page.wait(shown)
    return json.loads(own.gallery.file(item).with_suffix(".json").read_text()) | {"file": own.gallery.file(item)}


def test_text_to_video_and_more_options(page, own):
    page.wait("document.querySelector('#t2v-prompt')")
    page.run("[...document.querySelectorAll('button')].find(e => e.innerText.startsWith('More options')).click()")
    found = generate(
        page, own, "t2v", "Text to video", {"prompt": "a red 7", "steps": "2", "height": "16", "width": "16"}, {}
    )
    assert found["values"] | {"model": ""} == {"model": "", "prompt": "a red 7", "steps": 2, "height": 16, "width": 16}
    assert (probe(found["file"]).width, probe(found["file"]).frames) == (16, FRAMES)


def test_image_to_video(page, own, picture):
    found = generate(page, own, "i2v", "Image to video", {"prompt": "a 7"}, {"image": picture})
    assert read_frames(found["file"]).shape == (FRAMES, SIZE, SIZE, 3) and found["values"]["image"].startswith(
        "inputs/"
    )


def test_long_video(page, own):
    found = generate(page, own, "long", "Long video", {"prompt": "a 7", "seconds": "1.5"}, {})
    assert found["values"]["seconds"] == 1.5 and probe(found["file"]).frames == 12


def test_long_video_with_a_prompt_for_each_segment(page, own):
    """Lines of a field; the order is one of a list."""
    turn_to(page, "Long video")
    press(page, "#long-order input")
    press(page, "#long-order [role=option]:nth-child(3)")
    write(page, "long-local_prompt", "a red 7 moves up\na red 7 moves down")
    found = generate(page, own, "long", "Long video", {"prompt": "a 7", "seconds": "1"}, {})
    assert found["values"]["local_prompt"] == ["a red 7 moves up", "a red 7 moves down"]
    assert found["command"].count("--order=nuwa-xl") == 1 and probe(found["file"]).frames == 8


def test_extend(page, own, clip):
    found = generate(page, own, "extend", "Extend", {"prompt": "a 7", "seconds": "0.5"}, {"clip": clip})
    assert probe(found["file"]).frames == FRAMES + 4


def test_interpolate(page, own, clip):
    found = generate(page, own, "interpolate", "Interpolate", {"factor": "4"}, {"clip": clip})
    assert probe(found["file"]).frames > 3 * FRAMES


def test_inpaint_within_a_mask_that_is_drawn(page, own, clip):
    turn_to(page, "Inpaint")
    page.wait("document.querySelector('#inpaint-clip input[type=file]')")
    page.give("#inpaint-clip", clip)
    page.wait("document.querySelector('#draw-mask canvas')")
    page.wait("document.querySelector('#inpaint-clip .file-preview')")
    page.run("document.querySelector('#draw-mask canvas').scrollIntoView({block: 'center'})")
    page.pause(1.5)  # the editor draws the frame, which nothing in the page tells of
    box = page.run(
        "(b => [b.x, b.y, b.width, b.height])(document.querySelector('#draw-mask canvas').getBoundingClientRect())"
    )
    x, y, width, height = box
    page.drag((x + 0.42 * width, y + 0.5 * height), (x + 0.5 * width, y + 0.5 * height))
    page.pause(1.0)
    found = generate(page, own, "inpaint", "Inpaint", {"prompt": "a 3"}, {})
    mask = read_frames(own.gallery.kept(found["values"]["mask"]))[0, ..., 0]
    assert mask.shape == (SIZE, SIZE) and 0 < (mask > 127).float().mean() < 0.5
    assert read_frames(found["file"]).shape == (FRAMES, SIZE, SIZE, 3)


def test_edit(page, own, clip):
    found = generate(page, own, "edit", "Edit", {"source": "a 7", "prompt": "a 3"}, {"clip": clip})
    assert found["values"]["source"] == "a 7" and probe(found["file"]).frames == FRAMES


def test_style(page, own, clip, picture):
    found = generate(page, own, "style", "Style", {"prompt": "a 7"}, {"clip": clip, "style": picture})
    assert found["values"]["style"].startswith("inputs/") and probe(found["file"]).frames == FRAMES


def test_upscale_by_another_model(page, own, clip):
    turn_to(page, "Upscale")
    press(page, "#upscale-model input")
    press(page, "#upscale-model [role=option]:nth-child(2)")
    found = generate(page, own, "upscale", "Upscale", {"by": "2"}, {"clip": clip})
    assert read_frames(found["file"]).shape == (FRAMES, 2 * SIZE, 2 * SIZE, 3)
    assert found["values"]["model"] == own.given["model"][1]


def test_cancel(page, own):
    before = len(own.gallery.items())
    turn_to(page, "Text to video")
    write(page, "t2v-steps", "10000")
    press(page, "#make-t2v")
    page.wait("/sampling [1-9].* left/.test(document.querySelector('#said-t2v').innerText)", 60)
    press(page, "#stop-t2v")
    page.wait("document.querySelector('#said-t2v').innerText.includes('stopped after')", 60)
    assert len(own.gallery.items()) == before


def test_gallery_vary_and_compare_blind(page, own, tmp_path):
    turn_to(page, "Gallery")
    write(page, "search", "a red 7")
    page.press("Enter")
    page.wait("document.querySelectorAll('#made .thumbnail-item').length === 1")
    press(page, "#made .thumbnail-item")
    page.wait("document.querySelector('#facts textarea').value.includes('latentvid t2v')")
    press(page, "#vary")
    page.wait("document.querySelector('#said-gallery').innerText.includes('made in')", 60)
    first, second = sorted((item for item in own.gallery.items() if item.prompt == "a red 7"), key=lambda i: i.seed)
    assert second.values == first.values | {"seed": 1}
    page.run("document.querySelector('#compare button').click()")
    turn_to(page, "Gallery")  # what was chosen is chosen still; its new partner is listed once it is chosen again
    page.wait("document.querySelectorAll('#made .thumbnail-item').length >= 2")
    page.run("document.querySelectorAll('#made .thumbnail-item')[1].click()")
    page.wait("document.querySelector('#with input').value.includes('seed')")
    press(page, "#show-both")
    page.wait("document.querySelector('#pair video')?.readyState > 1")
    press(page, "#choose-left")
    page.wait("document.querySelector('#told').innerText.includes('1 choices so far')")
    folder = own.gallery.folder / "comparisons"
    left = read_key(folder).pairs[0].left
    pairs = by_choices(folder, [folder / "choices-studio.json"], None)
    assert pairs.first == (left == "A") and len(pairs.rows) == 1


@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
def test_no_tab_scrolls_sideways_on_a_phone(page, own, dark):
    """With all options open, a clip of a long prompt chosen, and a run shown. Text has the contrast that WCAG 2 asks of
    it (4.5), against the ground that it stands on."""
    put(own.gallery, torch.zeros(2, 16, 16, 3, dtype=torch.uint8), prompt="onelongword" * 40, seed=3)
    run = own.runs[0] / "with_a_name_that_is_longer_than_a_phone_is_wide"
    run.mkdir(parents=True, exist_ok=True)
    (run / "metrics.jsonl").write_text('{"step": 1, "loss": 0.5}\n{"step": 2, "loss": 0.4}\n')
    page.view(390, 844, dark=dark)
    page.reload()
    page.wait("document.querySelector('#make-t2v')")
    try:
        for title, part in (
            *((tab.title, f"make-{tab.program}") for tab in TABS),
            ("Gallery", "made"),
            ("Runs", "runs"),
        ):
            turn_to(page, title)
            page.wait(f"document.querySelector('#{part}')?.offsetParent")
            closed = "[...document.querySelectorAll('.label-wrap:not(.open)')].filter(e => e.offsetParent)"
            page.run(f"{closed}.forEach(e => e.click())")
            if title == "Gallery":
                press(page, "#made .thumbnail-item")
                page.wait("document.querySelector('#facts textarea').value.includes('onelongword')")
            if title == "Runs":
                page.wait("document.querySelector('#run-page iframe')")
            page.pause(0.5)
            wide, over = page.run(WIDER)
            assert wide <= 390 and over == [], f"{title}: {wide} pixels wide: {over}"
            assert page.run(PALE) == [], title
    finally:
        page.view(1280, 1000)
        page.reload()
        page.wait("document.querySelector('#make-t2v')")


def test_runs_and_no_errors(page, own):
    run = own.runs[0] / "mine"
    run.mkdir(parents=True)
    (run / "metrics.jsonl").write_text("".join(json.dumps({"step": i, "loss": 1 / i}) + "\n" for i in range(1, 9)))
    turn_to(page, "Runs")
    page.wait("document.querySelector('#run-page iframe')?.srcdoc.includes('Loss of training')")
    with (run / "metrics.jsonl").open("a") as file:
        file.write(json.dumps({"step": 9, "loss": 0.01, "grad_norm": 1.0}) + "\n")
    page.wait("document.querySelector('#runs').innerText.replace(/\\s+/g, ' ').includes(' 9 ')")  # without a click
    assert [problem for problem in page.problems if "play() request" not in problem] == []
    asked = page.run("performance.getEntriesByType('resource').map(e => new URL(e.name).host)")
    assert set(asked) <= {page.run("location.host"), ""}
