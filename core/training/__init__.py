"""How a model is trained: alone, under gates, or from a teacher."""
