"""What reports are made of: comparisons, tables, sentences, figures."""
