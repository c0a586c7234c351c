"""Do combinations of gradients and search find more than the better of both?"""
