"""The programs: what the scripts and the command `latentvid` run. Each parses, builds and runs."""
