"""The diffusion core: paths, targets, noise levels, one scheduler, guidance."""
