"""Studies of what the published numbers rest on, each measured again by one command."""
