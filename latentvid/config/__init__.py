"""Configuration: its schema, the command line, conversion of values, YAML."""
