"""The studio's process: programs run there one after another, keep their model, and stop without ending it."""

import sys

import pytest
from studios import made, studio

from latentvid.errors import ENDED_BY_USER, UserError
from latentvid.pipelines.loading import load_pipeline, pipelines_kept
from latentvid.studio.jobs import Worker
from latentvid.studio.worker import Said, run


def heard(text: str) -> list[dict]:
    messages = []
    said = Said(messages.append)
    for part in text.split("|break|"):
        said.write(part)
    return messages


def test_bars_and_lines_are_told_apart():
    bar = "sampling:  25%|██▌       | 4/16 [00:01<00:03,  3.27it/s]"
    assert heard(f"\r{bar}") == [{"bar": ["sampling", 4, 16, "00:03"]}]
    assert heard(f"\r  0%|          | 0/16 [00:00<?, ?it/s]|break|\r{bar}\n") == [
        {"bar": ["", 0, 16, "?"]},
        {"bar": ["sampling", 4, 16, "00:03"]},
    ]
    assert heard("error: no|break| such file\n\n\x1b[Anext\n") == [{"text": "error: no such file"}, {"text": "next"}]
    assert Said(print).isatty()


def test_a_program_says_what_is_wrong_with_its_options():
    messages = []
    assert run(["t2v", "--prompt=x", "--steps=0"], messages.append) == 2
    assert messages == [
        {"text": "error: --steps 0: must be a whole number from 1 to 10,000 (see latentvid t2v --help)"}
    ]
    assert run(["no-such"], messages.append) == 2


def test_a_pipeline_is_kept_for_the_next_program_and_read_again_once_it_is_written(tiny_pipeline, given_pipeline):
    assert load_pipeline(tiny_pipeline) is not load_pipeline(tiny_pipeline)
    with pipelines_kept() as kept:
        first = load_pipeline(tiny_pipeline)
        kept.ended()
        assert load_pipeline(tiny_pipeline) is first
        assert load_pipeline(tiny_pipeline, mixed_precision="no") is not first
        kept.ended()
        assert load_pipeline(tiny_pipeline) is first  # both were of the last program
        kept.ended()
        load_pipeline(given_pipeline)
        kept.ended()
        second = load_pipeline(tiny_pipeline)
        assert second is not first  # what a program did not ask for made room
        (tiny_pipeline / "model_index.json").touch()
        kept.ended()
        assert load_pipeline(tiny_pipeline) is not second
    assert load_pipeline(tiny_pipeline) is not load_pipeline(tiny_pipeline)


def test_clips_are_made_varied_and_stopped_by_one_process(tmp_path, tiny_pipeline):
    """One process, so that torch is imported once."""
    own = studio(tmp_path, tiny_pipeline)
    try:
        first = made(own, "t2v", {"model": str(tiny_pipeline), "prompt": "a red 7 <b>", "steps": 2})
        process = own.worker._process.pid
        again, varied = made(own, *first.again()), made(own, *first.vary())
        data = [own.gallery.file(item).read_bytes() for item in (first, again, varied)]
        assert data[0] == data[1] != data[2] and varied.seed == 1
        assert own.gallery.items()[0].command[:3] == ["t2v", f"--model={tiny_pipeline}", "--prompt=a red 7 <b>"]
        job, items = own.start("t2v", {"model": str(tiny_pipeline), "prompt": "x", "steps": 10_000})
        for state in job.watch(0.01):
            if state.done > 2:
                own.worker.stop()
        assert job.stopped and state.status == ENDED_BY_USER and items == [] and 2 < state.done < 10_000
        assert made(own, *first.again()) and own.worker._process.pid == process
        assert len(own.gallery.items()) == 4
    finally:
        own.worker.close()


PROGRAMS = """
import json, os, signal, sys, time
signal.signal(signal.SIGINT, signal.SIG_IGN)
for line in sys.stdin:
    print(json.dumps({"text": f"{os.getpid()}"}), flush=True)
    {"lost": lambda: os.kill(os.getpid(), 9), "deaf": lambda: time.sleep(60)}.get(json.loads(line)[0], str)()
    print(json.dumps({"end": 0}), flush=True)
"""


def test_a_process_that_is_lost_or_does_not_stop_is_started_anew():
    worker = Worker([sys.executable, "-c", PROGRAMS], patience=0.1)

    def messages_of(program: str) -> list[dict]:
        found = []
        worker.run([program], lambda message: (found.append(message), program == "deaf" and worker.stop()))
        return found

    try:
        worker.stop()  # nothing runs
        first, second = messages_of("one"), messages_of("two")
        assert first == second and first[-1] == {"end": 0}
        lost = messages_of("lost")
        assert lost[0] == first[0] and lost[-1] == {"end": -9}
        assert "SIGKILL: out of memory, or stopped" in lost[-2]["text"]
        deaf = messages_of("deaf")
        assert deaf[0] != first[0] and deaf[-1] == {"end": -9}
        assert messages_of("one")[0] not in (first[0], deaf[0])
    finally:
        worker.close()


@pytest.mark.parametrize(
    ("program", "values", "ending"),
    [
        ("t2v", {"frames": 1}, ".png"),
        ("t2v", {"frames": 5}, ".mp4"),
        ("style", {"clip": "inputs/0123456789abcdef.png"}, ".png"),
        ("style", {"clip": "inputs/0123456789abcdef.mp4"}, ".mp4"),
        ("long", {"frames": 1}, ".mp4"),  # written as it is made
    ],
)
def test_what_is_made_of_one_frame_is_a_picture(tmp_path, program, values, ending):
    own = studio(tmp_path, "m")
    own.worker = Worker([sys.executable, "-c", PROGRAMS])
    for name in (value for value in values.values() if isinstance(value, str)):
        (own.gallery.folder / "inputs").mkdir()
        (own.gallery.folder / name).touch()
    try:
        assert made(own, program, values).name.endswith(ending)
    finally:
        own.worker.close()


def test_only_programs_of_the_studio_are_run(tmp_path):
    own = studio(tmp_path, "m")
    with pytest.raises(UserError, match="train-dit is no program of the studio"):
        own.start("train-dit", {})
    with pytest.raises(UserError, match="upload it again"):
        own.start("i2v", {"model": "m", "image": "../../etc/passwd"})


def test_what_runs_make_may_be_chosen(tmp_path):
    own = studio(tmp_path, "hub/name", lora=["x.safetensors"])
    for name in ("pipeline", "lora"):
        (tmp_path / "runs" / "a" / name).mkdir(parents=True)
    (tmp_path / "runs" / "a" / "config.yaml").write_text("")
    lists = own.lists()
    assert lists["model"] == ["hub/name", str(tmp_path / "runs/a/pipeline")]
    assert lists["lora"] == ["x.safetensors", str(tmp_path / "runs/a/lora")] and lists["motion"] == []
