"""Students that learn from labels and from a teacher."""
