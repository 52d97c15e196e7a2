"""Networks: the causal video autoencoder and the video diffusion transformer."""
