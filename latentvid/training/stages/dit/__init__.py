"""The transformer's stage."""
