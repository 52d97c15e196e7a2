"""One self-contained page about a training run, a demo, or several side by side: `python -m latentvid.report`."""

from typing import Any

__all__ = ["write_report"]


def __getattr__(name: str) -> Any:
    """`write_report`, once it is asked for: `python -m latentvid.report --help` is answered without it."""
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from .pages import write_report

    return write_report
