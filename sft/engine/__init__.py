"""The training loop around the model: trl's trainer behind one module, its loss, its records, its checkpoints."""
