"""The share of text, by a detector in an ONNX file: what it is given, what is made of its map, and what is refused."""

import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from latentvid.curation.networks import Networks
from latentvid.curation.settings import Curation, Measures
from latentvid.curation.text_share import TextDetector
from latentvid.errors import UserError


class Session:
    """In the place of onnxruntime's: bright pixels are text."""

    given: list[np.ndarray] = []
    shape = (1, 3, None, None)
    halves = False

    def __init__(self, file: str, options: object, providers: list[str]) -> None:
        if Path(file).read_bytes() != b"a network":
            raise RuntimeError("Protobuf parsing failed.")

    def get_inputs(self) -> list:
        return [SimpleNamespace(name="x", shape=self.shape)]

    def get_outputs(self) -> list:
        return [SimpleNamespace(name="y")]

    def run(self, _: None, given: dict) -> list[np.ndarray]:
        self.given.append(given["x"])
        made = (given["x"].mean(axis=1, keepdims=True) + 1) / 2
        return [made[..., ::2, ::2] if self.halves else made]


@pytest.fixture
def file(monkeypatch, tmp_path) -> Path:
    module = SimpleNamespace(SessionOptions=SimpleNamespace, InferenceSession=Session)
    monkeypatch.setitem(sys.modules, "onnxruntime", module)
    monkeypatch.setattr(Session, "given", [])
    (tmp_path / "det.onnx").write_bytes(b"a network")
    return tmp_path / "det.onnx"


def test_the_share_is_of_the_pixels_that_are_marked(file):
    pixels = np.zeros((2, 360, 640, 3), np.uint8)
    pixels[0, :, :160] = 255  # a quarter of the first frame
    assert TextDetector(file)(pixels) == pytest.approx(0.125, abs=0.01)
    assert [given.shape for given in Session.given] == [(1, 3, 352, 640)] * 2
    assert (Session.given[1] == -1).all() and Session.given[0].max() == 1.0 and Session.given[0].dtype == np.float32
    TextDetector(file)(np.zeros((1, 2160, 3840, 3), np.uint8))
    assert Session.given[-1].shape == (1, 3, 544, 960)


def test_what_is_no_such_detector_is_refused(file, monkeypatch, tmp_path):
    with pytest.raises(UserError, match="no ONNX file that can be read: Protobuf"):
        (tmp_path / "other.onnx").write_bytes(b"text")
        TextDetector(tmp_path / "other.onnx")
    monkeypatch.setattr(Session, "halves", True)
    with pytest.raises(UserError, match=r"makes \[1, 1, 16, 32\] of \[1, 3, 32, 64\]: it must make a map"):
        TextDetector(file)(np.zeros((1, 32, 64, 3), np.uint8))
    monkeypatch.setattr(Session, "shape", (1, 80))
    with pytest.raises(UserError, match="has inputs"):
        TextDetector(file)
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.raises(UserError, match="pip install onnxruntime"):
        Networks(Measures(text=file))


def test_text_is_a_column_for_filters(file):
    assert Curation(filters=("text < 0.05",), measures=Measures(text=file)).parsed[0].names == {"text"}
    with pytest.raises(ValueError, match="the name is taken"):
        Measures(own={"text": "a:b"})
