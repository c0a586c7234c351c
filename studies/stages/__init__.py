"""What each possible stage of a cascade adds, on training images."""
