"""What a person starts: command line, recipes' common parts, comparisons, tuning, estimates, exports."""
