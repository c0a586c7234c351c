"""The libraries that are timed, each in a file of its own."""
