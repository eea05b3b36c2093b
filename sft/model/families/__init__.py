"""Legacy checkpoint formats, one module each: how their files become a native transformers folder. Nothing in a checkpoint is run."""
