"""Kernels for CPUs alone: grouped attention, and pieces of a block with backward passes written by hand."""
