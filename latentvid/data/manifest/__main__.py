"""Makes a manifest of a folder: `python -m latentvid.data.manifest`."""

from ...commands import manifest

if __name__ == "__main__":
    manifest()
