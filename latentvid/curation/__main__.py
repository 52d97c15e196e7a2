"""Makes a training set of raw footage: `python -m latentvid.curation`."""

if __name__ == "__main__":
    from ..commands import curation

    raise SystemExit(curation())
