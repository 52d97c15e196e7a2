"""Makes a manifest of a folder: `python -m latentvid.data.manifest`."""

if __name__ == "__main__":
    from ...commands import manifest

    raise SystemExit(manifest())
