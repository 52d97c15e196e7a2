"""How much of a picture is text, by a detector in an ONNX file.

Axes: F frames, H height, W width.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch

from ..data.transforms import fit
from ..errors import UserError, brief

LONGEST, STEP = (
    960,
    32,
)  # pixels of the longer side, as PaddleOCR has it; sides are multiples of what the network halves to
MARKED = 0.3  # probability from which a pixel counts as text, as in Liao et al. 2020


class TextDetector:
    """A detector that gives a map of probabilities (Liao et al. 2020, "Real-time scene text detection with
    differentiable binarization"), such as PaddleOCR's `*_det_infer.onnx`.

    Its input is float32 [1,3,H,W], RGB from -1 to 1, its output [1,1,H,W]. It marks the kernels of lines of text, which
    are smaller than the lines. Raises UserError where the file is none, or onnxruntime is not installed.
    """

    def __init__(self, file: Path) -> None:
        try:
            import onnxruntime
        except ImportError as error:
            raise UserError("measures.text needs the package onnxruntime: pip install onnxruntime") from error
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = options.inter_op_num_threads = 1
        self.file = file
        try:
            self.session = onnxruntime.InferenceSession(str(file), options, providers=["CPUExecutionProvider"])
        except Exception as error:  # its own classes have no base of their own
            raise UserError(f"measures.text={file} is no ONNX file that can be read: {brief(error, 200)}") from error
        inputs, outputs = self.session.get_inputs(), self.session.get_outputs()
        if len(inputs) != 1 or len(inputs[0].shape) != 4 or len(outputs) != 1:
            raise self._other(f"has inputs {[each.shape for each in inputs]} and {len(outputs)} outputs")
        self.name = inputs[0].name

    def __call__(self, pixels: np.ndarray) -> float:
        """Of uint8 [F,H,W,3]: the mean share of the picture that is marked."""
        height, width = pixels.shape[1:3]
        scale = min(1.0, LONGEST / max(height, width))
        height, width = (max(STEP, round(side * scale / STEP) * STEP) for side in (height, width))
        return float(np.mean([self._marked(frame) for frame in fit(torch.from_numpy(pixels), height, width).numpy()]))

    def _marked(self, frame: np.ndarray) -> float:
        given = frame.transpose(2, 0, 1)[None].astype(np.float32) / 127.5 - 1
        found: Any = self.session.run(None, {self.name: given})[0]
        if found.shape != (1, 1, *frame.shape[:2]):
            raise self._other(f"makes {list(found.shape)} of {list(given.shape)}")
        return float((found > MARKED).mean())

    def _other(self, why: str) -> UserError:
        return UserError(f"measures.text={self.file} {why}: it must make a map [1,1,H,W] of a picture [1,3,H,W]")
