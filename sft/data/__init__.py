"""The way of the data: rows, conversations, text with spans, ids with a mask, batches. Each arrow is one module."""
