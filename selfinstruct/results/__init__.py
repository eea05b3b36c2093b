"""What is read out of a run directory: report, plots, review, trace, and the exports."""
