"""The studio: the inference programs as pages in a browser (docs/studio.md)."""
