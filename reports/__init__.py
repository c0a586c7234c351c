"""The renderers: one file each; records in, a table, figure or page out."""
