"""What every other package may use; of RobustSNN it imports nothing but the errors."""
