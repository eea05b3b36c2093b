"""Ways of asking: each turns seeds and earlier rows into requests, and completions into candidates."""
