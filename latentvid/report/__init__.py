"""One self-contained page about a training run, a demo, or several side by side: `python -m latentvid.report`."""
