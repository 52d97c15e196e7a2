"""One self-contained page about a training run, a demo, or several side by side: `python -m latentvid.report`."""

from .pages import write_report

__all__ = ["write_report"]
