"""What does each possible stage of a cascade add, on training images?"""
