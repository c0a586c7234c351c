"""The renderers: each file turns the records of runs into a table, a figure or a page."""
