"""Is a number stable when budgets, batches and sizes change?"""
