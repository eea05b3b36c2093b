"""Models and tokenizers: loading with repairs, adapters, attention, merging. The only place that imports peft."""
