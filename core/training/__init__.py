"""Training of a model: alone, under gates, or from a teacher."""
