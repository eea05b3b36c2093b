"""From shared conversations as they came to rows that can be trained on: cleaned, filtered, without duplicates, cut to length."""
