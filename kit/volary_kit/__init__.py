"""What all Volary services share; it knows no service by name."""
