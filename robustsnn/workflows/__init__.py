"""What a command does with several runs."""
