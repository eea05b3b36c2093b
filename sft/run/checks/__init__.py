"""``sft eval``: what a tuned model does, beside what it was made from: loss, answers, harness tasks, conditions, a report."""
