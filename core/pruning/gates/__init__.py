"""Gates: one learned value per unit that multiplies it."""
