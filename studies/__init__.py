"""What the published numbers rest on, measured again by one command each."""
