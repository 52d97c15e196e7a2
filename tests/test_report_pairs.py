"""Two runs side by side, clip by clip."""

import json

from pages import Html
from test_report_runs import make_run

from latentvid.report.pages import write_report
from latentvid.report.scores import by_pairs


def test_two_runs_are_compared_by_pairs_of_clips(tmp_path):
    run, other = make_run(tmp_path / "one"), make_run(tmp_path / "two")
    for folder, more, names in ((run, 0.0, "abcd"), (other, 1.0, "wxyz")):
        file = folder / "evaluation" / "scores.json"
        clips = [
            {"file": f"{folder}/{names[k]}.mp4", "start": 0, "caption": f"prompt {k // 2}", "seed": k % 2,
             "scores": {"psnr": 10.0 * k + more * (1 + k // 2)}}
            for k in range(4)
        ]  # fmt: skip
        scores = {"psnr": {"value": 15.0 + 1.5 * more, "better": "higher"}}
        file.write_text(json.dumps(json.loads(file.read_text()) | {"scores": scores, "clips": clips}))
    text = Html.of(write_report([run, other], tmp_path / "page.html")).text
    assert "two: pair by pair against one" in text and "4, 2 prompts" in text
    assert "1.500" in text and "-4.853 to 7.853" in text  # Student's, of 1 and 2
    assert "100 %" in text and "+2.60" in text  # d_z of 1, 1, 2, 2
    found = by_pairs(*(json.loads((each / "evaluation" / "scores.json").read_text()) for each in (other, run)))
    assert found["psnr"]["p"] == 0.5  # both prompts one way: 2 of 4 swaps
    assert by_pairs({"clips": [{"file": "a.mp4"}]}, {"clips": [{"file": "b.mp4"}]}) == {}
