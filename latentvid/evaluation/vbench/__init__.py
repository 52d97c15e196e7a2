"""VBench's dimensions (Huang et al. 2024) that its networks can be had for, by its names and formulas."""
