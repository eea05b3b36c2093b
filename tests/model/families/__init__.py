"""Legacy checkpoint formats: read, converted, and held to the formulas of the originals."""
