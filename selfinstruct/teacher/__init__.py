"""The outside world: endpoints, recorded replies, what they cost and how fast they may be asked."""
