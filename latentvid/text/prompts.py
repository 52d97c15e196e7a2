"""What is done to a prompt before a published model's encoder reads it."""

from __future__ import annotations

import html
import re

try:
    import ftfy
except ImportError:  # optional
    ftfy = None

from .folder import TextError
from .policy import Reading

_QUOTED = re.compile(r"\"(.*?)\"|“(.*?)”")


def said(prompt: str, reading: Reading) -> str | None:
    """What the encoder is to read of a prompt, without the template; None: nothing. Raises TextError."""
    if reading.takes == "quoted":
        return _quoted(prompt)
    if reading.clean == "strip":
        prompt = prompt.strip()
    elif reading.clean == "mend":
        prompt = mended(prompt)
    return prompt or reading.empty


def mended(prompt: str) -> str:
    """As Wan's `prompt_clean` does it: wrongly decoded letters and full-width forms (by ftfy), HTML, white space."""
    if ftfy is not None:
        prompt = ftfy.fix_text(prompt)
    elif not all(letter.isascii() and letter.isprintable() or letter.isspace() for letter in prompt):
        raise TextError(
            f"prompt {prompt[:60]!r} has letters outside ASCII: this model reads prompts as ftfy mends them, and it is "
            "not installed: pip install ftfy"
        )
    return re.sub(r"\s+", " ", html.unescape(html.unescape(prompt))).strip()


def _quoted(prompt: str) -> str | None:
    """The texts in quotation marks, each once, as HunyuanVideo-1.5 puts them to ByT5; None where there are none."""
    found = dict.fromkeys(straight or curly for straight, curly in _QUOTED.findall(prompt))
    return "".join(f'Text "{text}". ' for text in found) or None
