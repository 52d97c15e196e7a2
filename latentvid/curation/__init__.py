"""From raw footage to a manifest: stages over rows, run by Ray Data."""
