"""The parts of a report: comparisons, tables, sentences and figures."""
