"""The command line: it parses and prints; all else is imported inside the commands."""
