"""VBench's dimensions (Huang et al. 2024) whose networks are available, by its names and formulas."""
