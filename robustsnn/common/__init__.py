"""What every other room may use: it imports nothing of RobustSNN but the errors."""
