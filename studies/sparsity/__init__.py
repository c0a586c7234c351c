"""What sparsity does to accuracy, robustness, spikes and energy."""
