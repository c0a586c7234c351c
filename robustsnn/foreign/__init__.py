"""Networks of other libraries: their neurons are found, cut and checked; no library is imported."""
