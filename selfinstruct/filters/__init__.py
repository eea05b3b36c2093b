"""What refuses a candidate, and why: the sections of a recipe, their word lists and measures, and the exact novelty index."""
