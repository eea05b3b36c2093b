"""A teacher that grades: verdicts, what they add up to, and how sure that is."""
