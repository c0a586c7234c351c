"""What an attack is given: the threat model, the victim, losses, searches, other libraries."""
