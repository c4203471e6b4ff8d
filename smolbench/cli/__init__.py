"""What a person types: the commands and their options."""
