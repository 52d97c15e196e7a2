"""The autoencoder's stage."""
