"""Manifests: tables of clips and captions, folders searched for them, facts of their files."""
