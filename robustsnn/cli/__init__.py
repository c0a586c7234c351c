"""The command line: it parses and prints, and everything else is imported inside."""
