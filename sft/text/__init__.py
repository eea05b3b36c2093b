"""Text as cleaning and filters see it, for both packages: tokens and normal forms, what speaks as a model, what an evaluation asks."""
