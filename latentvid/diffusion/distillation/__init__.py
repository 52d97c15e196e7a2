"""What students learn from a frozen teacher: a method a file, each after its paper, for any path and target."""
