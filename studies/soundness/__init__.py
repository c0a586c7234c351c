"""Is `standard` below every peer and every single estimator?"""
