"""What an attack is given: threat model, victim, losses, searches, other libraries."""
