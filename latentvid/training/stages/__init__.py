"""Stages: what is trained, on what, with which loss."""
