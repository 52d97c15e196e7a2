"""What people prefer: blind pairs and their count."""
