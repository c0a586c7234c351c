"""What the talk on sparsity and robustness claims, and what the networks of the zoo show."""
