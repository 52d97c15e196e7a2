"""What a run says of itself, and its measurements on held-out data."""
