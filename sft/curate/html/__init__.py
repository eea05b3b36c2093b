"""HTML of shared conversations back to the Markdown that it was rendered from."""
