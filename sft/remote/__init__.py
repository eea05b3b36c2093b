"""OpenAI-compatible servers: the one door to the ``openai`` package, and what can go wrong behind it."""
