"""The page that asks people: in a real browser, blind, and counting only choices that are its own."""

import json
import random
import sys
from collections import Counter
from pathlib import Path

import pytest
import torch
from browser import Browser, browser
from scripting import refused

from latentvid import commands
from latentvid.data.video.reading import probe, read_frames
from latentvid.data.video.writing import write_video
from latentvid.errors import UserError
from latentvid.evaluation import compare
from latentvid.evaluation.preference.key import Key, Pair, draw_pairs, read_key
from latentvid.evaluation.preference.page import common_rate, noise_like, shown
from latentvid.evaluation.rows import Clip

FRAMES, SIZE = 13, (24, 40)
RED, BLUE = (200, 40), (40, 200)  # red and blue of the clips of A and B; green says which frame it is
HOSTILE = 'a clip </script><script>document.title = "broken"</script> & <b>'


def coloured(colour: tuple[int, int], frames: int = FRAMES, size: tuple[int, int] = SIZE) -> torch.Tensor:
    clip = torch.empty(frames, *size, 3, dtype=torch.uint8)
    clip[..., 0], clip[..., 2] = colour
    clip[..., 1] = torch.arange(frames)[:, None, None] * 15 + 20
    return clip


@pytest.fixture(scope="module")
def folders(tmp_path_factory) -> tuple[Path, Path]:
    root = tmp_path_factory.mktemp("clips")
    for folder, colour in (("red_model", RED), ("blue_model", BLUE)):
        for i in range(6):
            write_video(root / folder / f"name{i}.mp4", coloured(colour), 8)
        rows = [{"file": f"name{i}.mp4", "prompt": f"{HOSTILE} {i}"} for i in range(6)]
        (root / folder / "results.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return root / "red_model", root / "blue_model"


@pytest.fixture
def command(monkeypatch, capsys):
    """`command("A", "B", "--out", ...)`: (status, stdout, stderr) of the command."""

    def command(*arguments: object) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["compare", *map(str, arguments)])
        status = 0
        try:
            commands.compare()
        except SystemExit as stop:
            status = stop.code or 0
        return status, *capsys.readouterr()

    return command


def choices_file(path: Path, key: Key, rater: str, choices: list[tuple[int, str, str]], **changes: object) -> Path:
    rows = [{"pair": pair, "question": question, "choice": choice} for pair, question, choice in choices]
    path.write_text(json.dumps({"page": key.page, "rater": rater, "choices": rows} | changes))
    return path


# -------------------------------------------------------------------------------------------------- in a real browser


def look(b: Browser) -> list[str]:
    """What an eye sees on the left and on the right: "red", "blue", or "noise"."""
    b.wait("canvases.every((canvas) => canvas.getContext('2d').getImageData(0, 0, 1, 1).data[3])")
    seen = b.run("""canvases.map((canvas) => {
        const { data } = canvas.getContext("2d").getImageData(0, 0, canvas.width, canvas.height), reds = [];
        for (let i = 0; i < data.length; i += 4) reds.push(data[i]);
        const mean = reds.reduce((a, x) => a + x) / reds.length;
        return [mean, reds.reduce((a, x) => a + (x - mean) ** 2, 0) / reds.length]; })""")
    return ["noise" if spread > 400 else "red" if mean > 120 else "blue" for mean, spread in seen]


def choose(b: Browser, question: int, choice: int, mouse: bool) -> None:
    if mouse:
        b.click(f"#questions > :nth-child({question + 1}) button:nth-child({choice + 1})")
    else:
        b.press(random.choice([str(choice + 1), ("ArrowLeft", "ArrowDown", "ArrowRight")[choice]]))


def place(b: Browser, number: int) -> None:
    b.wait(f"!$('rate').hidden && $('place').textContent === 'Pair {number} of 8'")


def test_choices_made_in_a_browser_are_what_is_counted(folders, command, tmp_path):
    questions = ("Which looks better?", "Which follows the prompt better?")
    out = tmp_path / "page"
    assert command(*folders, "--out", out, "--attention", 2, "--seed", 3)[0] == 0
    with browser(tmp_path / "browser") as b:
        b.view(1000, 800)
        b.open(out / "compare.html")
        b.click("#name")
        b.type("Ann Élan")
        b.press("Enter")
        sides, ties = {}, 0
        for n in range(1, 9):
            place(b, n)
            assert b.run("$('prompt').textContent").startswith("Prompt" + HOSTILE)
            seen = sides[n] = look(b)
            if seen[0] == seen[1]:
                best, ties = 1, ties + 1
            else:
                best = 2 * seen.index("red") if "red" in seen else 2 * (1 - seen.index("noise"))
            choose(b, 0, best, mouse=n % 2 == 0)
            if n == 4:
                b.reload()  # in the middle of a pair
                place(b, 4)
            choose(b, 1, 1, mouse=n % 3 == 0)
        b.wait("!$('end').hidden")
        assert ties == 1 and "all 8" in b.run("$('summary').textContent")

        real = [n for n in sides if set(sides[n]) == {"red", "blue"}]
        b.click("#review")  # then back to the last two real pairs: the one becomes a tie, the other blue
        for n in range(8, 0, -1):
            place(b, n)
            if n in real[-2:]:
                choose(b, 0, 1 if n == real[-1] else 2 * sides[n].index("blue"), mouse=True)
            b.click("#back")
        b.wait("!$('start').hidden")
        b.reload()
        b.click("#start button")
        for n in range(1, 9):
            place(b, n)
            b.click("#next")
        b.click("#end [data-save]")
        saved = [b.downloaded()]

        b.click("#another")
        b.click("#name")
        b.type("Bo")
        b.press("Enter")
        while (n := b.run("state.at") + 1) != real[0]:
            b.click("#next")
        place(b, n)
        choose(b, 0, 2 * sides[n].index("blue"), mouse=False)
        b.click("#rate [data-save]")
        saved.append(b.downloaded())
        assert b.problems == [] and b.run("$('trouble').hidden") and b.run("document.title") == "Which is better?"

    assert [path.name for path in saved] == ["choices-Ann-Élan.json", "choices-Bo.json"]
    status, said, _ = command("--count", out, saved[0], "--out", tmp_path / "results.json")
    assert status == 0 and "75.0 % of 6 pairs" in said
    first, second = json.loads((tmp_path / "results.json").read_text())["questions"]
    assert (first["question"], second["question"]) == questions
    assert first["chosen"] == {"A": 4, "tie": 1, "B": 1} and first["win_rate"] == 0.75  # A is red
    assert second["chosen"] == {"A": 0, "tie": 6, "B": 0} and second["win_rate"] == 0.5 and second["left"] is None
    assert "Ann Élan: same 2 of 2, noise 1 of 2" in said  # the second question was answered by ties alone

    status, said, _ = command("--count", out, *saved)
    assert status == 0 and "66.7 % of 6 pairs" in said and "Bo: 0.0 % of 1" in said


def test_both_sides_show_the_same_moment(folders, tmp_path):
    compare.make_page(*folders, tmp_path, pairs=1)
    with browser(tmp_path / "browser") as b:
        b.open(tmp_path / "compare.html")
        b.run("state.rater = 'x', go(0)")
        look(b)
        seen = b.run("""new Promise((done) => { const seen = [], begun = performance.now(); function step() {
            seen.push(canvases.map((c) => c.getContext("2d").getImageData(20, 12, 1, 1).data[1]));
            if (performance.now() - begun < 2500) requestAnimationFrame(step); else done(seen); }
            requestAnimationFrame(step); })""")
        assert max(abs(left - right) for left, right in seen) <= 6  # a frame is 15 levels
        frames = [round((left - 20) / 15) for left, _ in seen]
        assert len(set(frames)) >= FRAMES - 3 and any(b < a for a, b in zip(frames, frames[1:], strict=False))  # loops
        b.click("#pause")
        assert b.run("video.paused")
        b.press("r")
        b.wait("!video.paused && video.currentTime < 1")
        for dark, width in ((False, 1200), (True, 400)):
            b.view(width, 800, dark=dark)
            assert b.run("document.documentElement.scrollWidth") <= width
            b.click("#questions button")  # is in view, or can be scrolled there
        assert b.problems == []


# ----------------------------------------------------------------------------------------------------------- the page


def test_the_page_holds_nothing_that_tells_the_sides(folders, tmp_path):
    key = compare.make_page(*folders, tmp_path / "one", checks=4, seed=1)
    page = (tmp_path / "one" / "compare.html").read_text()
    for word in ("red_model", "blue_model", "name0", "name5", "results.jsonl", str(tmp_path)):
        assert word not in page
    about = json.loads(page.split('id="page">')[1].split("</script>")[0])
    assert set(about) == {"id", "questions", "pairs"} and about["id"] == key.page
    assert {tuple(pair) for pair in about["pairs"]} == {("prompt", "height", "width")} and len(about["pairs"]) == 10
    assert page.count("data:video/mp4;base64,") == 10
    assert read_key(tmp_path / "one") == key
    again = compare.make_page(*folders, tmp_path / "two", checks=4, seed=1)
    assert again == key and (tmp_path / "two" / "compare.html").read_text() == page
    swapped = compare.make_page(*folders[::-1], tmp_path / "three", checks=4, seed=1)
    assert swapped.page != key.page


def test_pairs_are_drawn_by_the_seed_with_sides_in_balance():
    names = [f"{i}.mp4" for i in range(20)]
    pairs = draw_pairs(names, 10, 7, 0)
    assert pairs == draw_pairs(names[::-1], 10, 7, 0) != draw_pairs(names, 10, 7, 1)
    real = [pair for pair in pairs if not pair.is_check]
    assert len({pair.name for pair in real}) == len(real) == 10
    assert Counter((pair.left, pair.right) for pair in real) == {("A", "B"): 5, ("B", "A"): 5}
    assert Counter(pair.expected for pair in pairs if pair.is_check) == {"tie": 3, "left": 2, "right": 2}
    assert any(pair.is_check for pair in pairs[:9]) and any(pair.is_check for pair in pairs[9:])
    orders = {tuple(pair.left for pair in draw_pairs(names, 20, 0, seed)) for seed in range(20)}
    assert len(orders) == 20
    with pytest.raises(UserError, match="--pairs 21"):
        draw_pairs(names, 21, 0, 0)


def test_a_pair_of_unequal_clips_is_shown_at_one_size_rate_and_length(tmp_path):
    left = Clip(coloured(RED, 4, (24, 40)), fps=8)
    right = Clip(coloured(BLUE, 9, (48, 48)), fps=12)
    pair = shown(left, right)
    (tmp_path / "pair.mp4").write_bytes(pair.video)
    frames = read_frames(tmp_path / "pair.mp4").int()
    assert (pair.height, pair.width) == (48, 48) and frames.shape[1:3] == (48, 96)
    assert probe(tmp_path / "pair.mp4").fps == 24 and len(frames) == 18  # as long as the longer one, 0.75 s
    green = torch.arange(9)[:4] * 15 + 20
    assert torch.allclose(frames[::3, 24, 24, 1][:4], green.int(), atol=6)
    assert torch.allclose(frames[-6:, 24, 24, 1], green[-1].int(), atol=6)  # held
    assert torch.allclose(frames[::2, 24, 72, 1], (torch.arange(9) * 15 + 20).int(), atol=6)
    assert frames[:, :6, 8:40].max() < 25  # above the wide clip: black
    assert (frames[:, 24, 2, 0] > 150).all() and (frames[:, 24, 50, 2] > 150).all()
    with pytest.raises(UserError, match="one rate"):
        common_rate(24, 24000 / 1001)
    assert common_rate(24000 / 1001, 24000 / 1001) == pytest.approx(24000 / 1001)


def test_noise_is_still_and_as_large_as_its_clip():
    clip = Clip(coloured(RED, 5, (70, 130)), caption="x")
    noise = noise_like(clip, 0, 1)
    assert noise.pixels.shape == clip.pixels.shape and (noise.pixels == noise.pixels[0]).all()
    assert noise.pixels.float().std() > 60
    assert not torch.equal(noise.pixels, noise_like(clip, 0, 2).pixels)


def test_what_cannot_be_compared_is_refused(folders, command, tmp_path, monkeypatch):
    a, b = folders
    out = ("--out", tmp_path / "out")
    assert "two folders" in refused(command(a, *out))
    assert "is not a folder" in refused(command(a, tmp_path / "missing", *out))
    assert "one folder" in refused(command(a, a, *out))
    assert "different ones" in refused(command(a, b, *out, "--questions", "x", "x"))
    assert "--pairs 7" in refused(command(a, b, *out, "--pairs", 7))
    other = tmp_path / "other"
    for i in range(5):
        write_video(other / f"name{i}.mp4", coloured(BLUE), 8)
    assert f"{other} lacks 1 clip of {a} (name5.mp4)" in refused(command(a, other, *out))
    write_video(other / "name5.mp4", coloured(BLUE), 8)
    (other / "name3.txt").write_text("something else\n")
    assert "name3.mp4 has the prompt" in refused(command(a, other, *out))
    third = tmp_path / "third"
    for i in range(6):
        write_video(third / f"name{i}.mp4", coloured(RED), 8)
    assert "5 of 6 clips have no prompt, such as name0.mp4" in refused(command(other, third, *out))
    (other / "name3.txt").unlink()
    assert compare.make_page(other, third, tmp_path / "plain").questions == ("Which looks better?",)
    assert "another page" in refused(command(other, third, "--out", tmp_path / "plain", "--seed", 1))
    monkeypatch.setattr(compare, "LIMIT", 5_000)
    assert "--pairs" in refused(command(a, b, *out))
    assert not (tmp_path / "out").exists()


def test_what_cannot_be_written_is_said_before_the_work(folders, command, tmp_path, monkeypatch):
    monkeypatch.setattr(compare, "_shown", None)  # it does not come to that
    (tmp_path / "out" / "compare.html").mkdir(parents=True)
    assert "compare.html is a folder" in refused(command(*folders, "--out", tmp_path / "out"))
    (tmp_path / "file").touch()
    assert "cannot be written" in refused(command(*folders, "--out", tmp_path / "file"))
    assert "its name has 300 bytes" in refused(command(*folders, "--out", tmp_path / ("x" * 300)))
    monkeypatch.setattr(compare, "read_key", None)
    assert "out is a folder" in refused(command("--count", tmp_path, "c.json", "--out", tmp_path / "out"))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file", "out"]


# ---------------------------------------------------------------------------------------------------------- the count


def test_choices_that_do_not_belong_are_refused_by_name(command, tmp_path):
    key = Key("a", "b", 0, ("Better?",), "", (Pair("x", "A", "B"), Pair("y", "B", "A")))
    key.write(tmp_path)
    ask, good = key.questions[0], [(1, "Better?", "left")]

    def said(*paths: Path) -> str:
        return refused(command("--count", tmp_path, *paths))

    path = tmp_path / "c.json"
    first = choices_file(tmp_path / "first.json", key, "Ann", good)
    assert "c.json is of page 0, but the key is of page" in said(choices_file(path, key, "x", good, page="0"))
    assert f"{path} and {first} are both of the rater ' ann'" in said(first, choices_file(path, key, " ann", good))
    assert "c.json has pair 3" in said(choices_file(path, key, "x", [(3, ask, "left")]))
    assert "c.json has pair True" in said(choices_file(path, key, "x", [(True, ask, "left")]))
    assert "c.json answers 'Worse?'" in said(choices_file(path, key, "x", [(1, "Worse?", "left")]))
    assert "c.json chooses 'up'" in said(choices_file(path, key, "x", [(1, ask, "up")]))
    assert "twice for pair 1" in said(choices_file(path, key, "x", good * 2))
    assert "has no rater" in said(choices_file(path, key, " ", good))
    path.write_text(json.dumps({"page": key.page, "rater": "x", "choices": [1]}))
    assert "not as the page saves" in said(path)
    assert "no choices" in said(choices_file(path, key, "x", []))
    path.write_text("{")
    assert "c.json is damaged" in said(path)
    assert "key.json is missing" in refused(command("--count", tmp_path / "nowhere", first))
    assert "--seed is for making" in refused(command("--count", tmp_path, first, "--seed", 1))
    assert "give the files" in refused(command("--count", tmp_path))
