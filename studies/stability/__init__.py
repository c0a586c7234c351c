"""Does a number hold still when budgets, batches and sizes change."""
